"""The checkpoint of a run of many processes: a part from each, which any other number of them can read.

A part holds the rows of its process of whatever is split over processes, and a copy of all else. The parts
lie in ``part-1-of-4``, ``part-2-of-4``, ... of the folder; of a single process the folder is the part.
"""

from __future__ import annotations

import re
from pathlib import Path

_NAME = re.compile(r"part-(\d+)-of-(\d+)")


def part_folder(folder: Path, index: int, count: int) -> Path:
    """Where process `index` (from 0) of `count` keeps its checkpoints."""
    return folder if count == 1 else folder / f"part-{index + 1}-of-{count}"


def saved_parts(folder: Path) -> int:
    """The number of parts that the newest checkpoints of a run are in; 1 if there are none."""
    newest = {}
    for count in {
        1,
        *(int(found[2]) for path in folder.glob("part-*") if (found := _NAME.fullmatch(path.name))),
    }:
        updates = [_updates(part_folder(folder, index, count)) for index in range(count)]
        newest[count] = max(set.intersection(*updates), default=-1)
    return max(newest, key=lambda count: newest[count])


def _updates(part: Path) -> set[int]:
    return {int(path.name) for path in part.glob("*") if path.name.isdecimal()}
