"""The checkpoint of a run of many processes: one part from each, which any number of processes can read.

A part holds its process's rows of everything that is split over processes, and a copy of everything else.
The parts are in the subfolders ``part-1-of-4``, ``part-2-of-4``, ...; for a single process, the folder itself
is the part.
"""

from __future__ import annotations

import re
from pathlib import Path

_PART = re.compile(r"part-([1-9][0-9]*)-of-([1-9][0-9]*)")
_NUMBER = re.compile(r"0|[1-9][0-9]*")


def part_folder(folder: Path, index: int, count: int) -> Path:
    """The folder in which process `index` (from 0) of `count` keeps its checkpoints."""
    return folder if count == 1 else folder / f"part-{index + 1}-of-{count}"


def newest_update(folder: Path) -> int | None:
    """The update number of a run's newest checkpoint; None if there is none."""
    return _newest(folder)[0]


def saved_parts(folder: Path) -> int:
    """The number of parts of a run's newest checkpoint; 1 if there is none."""
    return _newest(folder)[1]


def _newest(folder: Path) -> tuple[int | None, int]:
    """The update number and the number of parts of the newest checkpoint of which every part exists."""
    parts = {1: [folder]}
    for path in folder.glob("part-*"):
        name = _PART.fullmatch(path.name)
        if name and int(name[2]) > 1 and int(name[1]) <= int(name[2]):
            parts.setdefault(int(name[2]), []).append(path)
    newest: tuple[int | None, int] = (None, 1)
    for count, paths in parts.items():
        updates = set.intersection(*map(updates_in, paths)) if len(paths) == count else set()
        if updates and (newest[0] is None or max(updates) > newest[0]):
            newest = (max(updates), count)
    return newest


def updates_in(part: Path) -> set[int]:
    """The update numbers of the checkpoints in the folder of a part."""
    return {int(path.name) for path in _numbered(part) if _is_folder(path)}


def strangers_in(part: Path) -> list[Path]:
    """Files and links in the folder of a part that are named like a checkpoint, but are none."""
    return sorted(path for path in _numbered(part) if not _is_folder(path))


def _numbered(part: Path) -> list[Path]:
    return [path for path in part.glob("*") if _NUMBER.fullmatch(path.name)]


def _is_folder(path: Path) -> bool:
    return path.is_dir() and not path.is_symlink()
