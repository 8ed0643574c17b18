"""Check the contents of a wheel and an sdist: everything that the packages need, and nothing else.

python .ci/check_package.py dist
"""

from __future__ import annotations

import subprocess
import sys
import tarfile
import zipfile
from email import message_from_bytes
from pathlib import Path

PACKAGES = ("learned_opt", "inner_tasks", "meta_train", "checkpoints")
BESIDE_THE_PACKAGES = {
    "CHANGELOG.md",
    "CITATION.cff",
    "LICENSE",
    "MANIFEST.in",
    "PKG-INFO",
    "README.md",
    "pyproject.toml",
    "setup.cfg",
}


def repository_files() -> set[str]:
    """The files of the packages in the repository: code, py.typed, pretrained optimizers."""
    listed = subprocess.run(["git", "ls-files", *PACKAGES], check=True, capture_output=True, text=True)
    return set(listed.stdout.splitlines())


def compare(where: str, found: set[str], expected: set[str]) -> list[str]:
    """The differences, as sentences."""
    return [f"{where} lacks {name}" for name in sorted(expected - found)] + [
        f"{where} has {name}, which does not belong there" for name in sorted(found - expected)
    ]


def check_wheel(path: Path) -> list[str]:
    """Check that a wheel has the files of the packages, the licence, the commands and absolute links."""
    with zipfile.ZipFile(path) as wheel:
        names = {name for name in wheel.namelist() if not name.endswith("/")}
        info = next(name for name in names if name.endswith(".dist-info/METADATA")).partition("/")[0]
        metadata = message_from_bytes(wheel.read(f"{info}/METADATA"))
        commands = wheel.read(f"{info}/entry_points.txt").decode()
    about = {name for name in names if name.startswith(info)}
    wrong = compare(path.name, names - about, repository_files())
    if f"{info}/licenses/LICENSE" not in about:
        wrong.append(f"{path.name} has no LICENSE")
    wrong += [
        f"{path.name} has no command {name}"
        for name in ("meta-train", "learned-opt", "pes-paper")
        if f"{name} =" not in commands
    ]
    if "](docs/" in metadata.get_payload():
        wrong.append(f"{path.name} has relative links in its description")
    licence, author = metadata["License-Expression"], metadata["Author"]
    print(f"{path.name}: {len(names)} files, licence {licence}, by {author}")
    return wrong


def check_sdist(path: Path) -> list[str]:
    """Check that an sdist has the files of the packages and those needed to build them."""
    with tarfile.open(path) as archive:
        names = {member.name.partition("/")[2] for member in archive.getmembers() if member.isfile()}
    print(f"{path.name}: {len(names)} files")
    built = {name for name in names if name.startswith("learned_opt.egg-info/")}
    return compare(path.name, names - built, repository_files() | BESIDE_THE_PACKAGES)


if __name__ == "__main__":
    folder = Path(sys.argv[1])
    wheels, sdists = list(folder.glob("*.whl")), list(folder.glob("*.tar.gz"))
    if len(wheels) != 1 or len(sdists) != 1:
        sys.exit(f"{folder} should hold one wheel and one sdist, but holds {len(wheels)} and {len(sdists)}")
    wrong = check_wheel(wheels[0]) + check_sdist(sdists[0])
    sys.exit("\n".join(wrong) or 0)
