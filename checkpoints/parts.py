"""The checkpoint of a run of many processes: one part from each, which any number of processes can read.

A part holds its process's rows of everything that is split over processes, and a copy of everything else.
The parts are in the subfolders ``part-1-of-4``, ``part-2-of-4``, ...; for a single process, the folder itself
is the part.
"""

from __future__ import annotations

import re
from pathlib import Path

_NAME = re.compile(r"part-(\d+)-of-(\d+)")


def part_folder(folder: Path, index: int, count: int) -> Path:
    """The folder in which process `index` (from 0) of `count` keeps its checkpoints."""
    return folder if count == 1 else folder / f"part-{index + 1}-of-{count}"


def saved_parts(folder: Path) -> int:
    """The number of parts of a run's newest checkpoint; 1 if there is none."""
    found = (_NAME.fullmatch(path.name) for path in folder.glob("part-*"))
    counts = {1, *(int(name[2]) for name in found if name)}

    def newest(count: int) -> int:
        updates = [updates_in(part_folder(folder, index, count)) for index in range(count)]
        return max(set.intersection(*updates), default=-1)

    return max(counts, key=newest)


def updates_in(part: Path) -> set[int]:
    """The update numbers of the checkpoints in the folder of a part."""
    return {int(path.name) for path in part.glob("*") if path.name.isdecimal()}
