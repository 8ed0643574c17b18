"""Check a built site: every link and picture points to a file of the site, and every anchor exists.

    python .ci/check_links.py build/site

Links to other hosts are not checked.
"""

from __future__ import annotations

import sys
from html.parser import HTMLParser
from pathlib import Path
from urllib.parse import unquote, urlsplit


class Page(HTMLParser):
    """The anchors and the link targets of a page."""

    def __init__(self, path: Path) -> None:
        super().__init__()
        self.anchors: set[str] = set()
        self.targets: set[str] = set()
        self.feed(path.read_text(encoding="utf-8"))

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        for name, value in attrs:
            if name == "id" and value:
                self.anchors.add(value)
            elif name in ("href", "src") and value:
                self.targets.add(value)


def broken_links(site: Path) -> list[str]:
    """The broken links of the site, each after the page that it is on."""
    pages = {path.resolve(): Page(path) for path in sorted(site.rglob("*.html"))}
    broken = []
    for path, page in pages.items():
        for target in sorted(page.targets):
            url = urlsplit(target)
            if url.scheme or url.netloc:
                continue
            linked = (path.parent / unquote(url.path)).resolve() if url.path else path
            linked = linked / "index.html" if linked.is_dir() else linked
            found = linked.exists()
            if found and url.fragment and linked in pages:
                found = unquote(url.fragment) in pages[linked].anchors
            if not found:
                broken.append(f"{path.relative_to(site.resolve())}: {target}")
    return broken


if __name__ == "__main__":
    site = Path(sys.argv[1])
    if not (site / "index.html").exists():
        sys.exit(f"{site} has no index.html; build the site: sphinx-build --fail-on-warning docs {site}")
    broken = broken_links(site)
    print(*broken, f"{len(broken)} broken links", sep="\n")
    sys.exit(bool(broken))
