"""Checks of failure messages, and of the page that quotes them."""

from __future__ import annotations

import hashlib
from pathlib import Path

from tests.meta_train.command import (
    ROOT,
    Outcome,
)

PAGE = " ".join((ROOT / "docs" / "failures.md").read_text().split())


def check(outcome: Outcome, code: int, says: str, *more: str) -> None:
    """Check the exit code, that there is one plain message, and that the page quotes it."""
    said = " ".join(outcome.err.replace("│", " ").split())  # tyro draws frames around messages
    assert outcome.code == code, said
    for words in (says, *more):
        assert words in said
    assert outcome.err.splitlines()[-1].startswith("meta-train: ") or "meta-train --help" in said
    assert "Traceback" not in said
    assert says in PAGE


def digests(folder: Path) -> dict[str, str]:
    """Digests of all files in a folder."""
    files = (path for path in folder.rglob("*") if path.is_file())
    return {str(path): hashlib.sha256(path.read_bytes()).hexdigest() for path in files}
