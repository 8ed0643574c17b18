"""The parts of a run's checkpoints, and the parts that remain after a change of their number."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from checkpoints import CheckpointStore, newest_update, part_folder, saved_parts


def save(folder: Path, index: int, count: int, *updates: int) -> None:
    with CheckpointStore(part_folder(folder, index, count)) as store:
        for update in updates:
            store.save(update, {"x": np.arange(3.0)}, {})


def test_a_single_process_keeps_its_checkpoints_in_the_folder_itself(tmp_path: Path) -> None:
    assert part_folder(tmp_path, 0, 1) == tmp_path
    assert part_folder(tmp_path, 1, 4).name == "part-2-of-4"


@pytest.mark.parametrize(
    ("alone", "first", "second", "expected"),
    [
        ([], [], [], 1),
        ([10], [], [], 1),
        ([10], [20], [20], 2),
        # The second process was killed before it saved what the first has: the newest common update counts.
        ([10], [10, 20], [10, 15], 1),
        ([5], [10, 20], [10, 15], 2),
        ([30], [20], [20], 1),
    ],
)
def test_the_newest_update_that_every_part_has_counts(
    tmp_path: Path, alone: list[int], first: list[int], second: list[int], expected: int
) -> None:
    save(tmp_path, 0, 1, *alone)
    save(tmp_path, 0, 2, *first)
    save(tmp_path, 1, 2, *second)
    assert saved_parts(tmp_path) == expected
    common = {1: alone, 2: set(first) & set(second)}[expected]
    assert newest_update(tmp_path) == max(common, default=None)


@pytest.mark.parametrize(
    "name", ["part-1-of-9999999999999", "part-0-of-0", "part-1-of-1", "part-x-of-2", "part-3-of-2"]
)
def test_a_folder_that_is_only_named_like_a_part(name: str, tmp_path: Path) -> None:
    save(tmp_path, 0, 1, 10)
    (tmp_path / name / "20").mkdir(parents=True)
    assert (newest_update(tmp_path), saved_parts(tmp_path)) == (10, 1)


def test_a_store_that_is_cleared_leaves_what_is_not_its_own(tmp_path: Path) -> None:
    save(tmp_path, 0, 1, 10, 20)
    save(tmp_path, 0, 2, 20)
    for part in (tmp_path, tmp_path / "part-1-of-2"):
        with CheckpointStore(part) as store:
            store.clear()
            assert store.updates() == []
            store.save(20, {"x": np.arange(3.0)}, {})  # the same again
            store.wait()
            assert store.updates() == [20]
            store.clear()
    assert tmp_path.exists() and not any(tmp_path.iterdir())


def test_restore_can_be_told_to_pass_over_the_newest(tmp_path: Path) -> None:
    save(tmp_path, 0, 1, 10, 20)
    with CheckpointStore(tmp_path) as store:
        restored = store.restore({"x": np.zeros(3)}, newest=19)
    assert (restored.update, restored.damaged) == (10, [])
