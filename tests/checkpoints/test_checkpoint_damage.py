"""The newest undamaged checkpoint is restored, and only into the structure that it was saved from."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax
import numpy as np
import pytest

from checkpoints import CheckpointStore
from learned_opt._src.errors import UserError


def state_of(update: int) -> dict[str, Any]:
    random = np.random.default_rng(update)
    return {"theta": random.standard_normal((1000, 7)), "key": random.integers(0, 99, (4, 2))}


LIKE = state_of(0)


def save(folder: Path, updates: list[int], keep: int = 3) -> None:
    with CheckpointStore(folder, keep) as store:
        for update in updates:
            store.save(update, state_of(update), {"line": update})


def assert_restores(folder: Path, update: int, damaged: list[int]) -> list[str]:
    with CheckpointStore(folder) as store:
        restored = store.restore(LIKE)
    assert restored.update == update
    assert restored.metadata == {"line": update}
    for path, array in state_of(update).items():
        assert restored.state[path].tobytes() == array.tobytes()
    assert len(restored.damaged) == len(damaged)
    for number, sentence in zip(damaged, restored.damaged, strict=True):
        assert f"update {number} is damaged" in sentence
        assert "\n" not in sentence
    return restored.damaged


def largest_array_file(checkpoint: Path) -> Path:
    """Most of this file is theta, so its middle is inside theta."""
    files = [path for path in (checkpoint / "arrays").rglob("*") if path.is_file()]
    return max(files, key=lambda path: path.stat().st_size)


def flip_bit(checkpoint: Path) -> None:
    path = largest_array_file(checkpoint)
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 1
    path.write_bytes(data)


def truncate(checkpoint: Path) -> None:
    path = largest_array_file(checkpoint)
    data = path.read_bytes()
    path.write_bytes(data[: len(data) // 2])


def remove_file(checkpoint: Path) -> None:
    largest_array_file(checkpoint).unlink()


def remove_arrays(checkpoint: Path) -> None:
    shutil.rmtree(checkpoint / "arrays")


def remove_index(checkpoint: Path) -> None:
    shutil.rmtree(checkpoint / "index")


def remove_everything(checkpoint: Path) -> None:
    shutil.rmtree(checkpoint)
    checkpoint.mkdir()


def edit_index(change: Callable[[dict[str, Any]], Any]) -> Callable[[Path], None]:
    def damage(checkpoint: Path) -> None:
        path = checkpoint / "index" / "metadata"
        index = json.loads(path.read_text())
        change(index)
        path.write_text(json.dumps(index))

    return damage


DAMAGE = {
    "flipped bit": flip_bit,
    "truncated file": truncate,
    "missing file": remove_file,
    "missing arrays": remove_arrays,
    "missing index": remove_index,
    "empty folder": remove_everything,
    "array digest deleted": edit_index(lambda index: index["arrays"]["['theta']"].pop("sha256")),
    "index digest deleted": edit_index(lambda index: index.pop("digest")),
    "array forgotten": edit_index(lambda index: index["arrays"].pop("['key']")),
    "metadata changed": edit_index(lambda index: index["metadata"].update(line=3)),
}


@pytest.mark.parametrize("kind", DAMAGE)
def test_damage_falls_back(tmp_path: Path, kind: str) -> None:
    save(tmp_path, [10, 20])
    DAMAGE[kind](tmp_path / "20")
    assert_restores(tmp_path, update=10, damaged=[20])


def test_what_orbax_reads_without_complaint_is_checked(tmp_path: Path) -> None:
    """The files of arrays are undamaged, but the arrays do not match the digests."""
    save(tmp_path, [10, 20])
    with CheckpointStore(tmp_path / "other") as store:
        changed = state_of(20)
        changed["theta"][50, 3] = np.nextafter(changed["theta"][50, 3], np.inf)
        store.save(20, changed, {"line": 20})
    shutil.rmtree(tmp_path / "20" / "arrays")
    shutil.copytree(tmp_path / "other" / "20" / "arrays", tmp_path / "20" / "arrays")
    (sentence,) = assert_restores(tmp_path, update=10, damaged=[20])
    assert "['theta'] differs from what was saved" in sentence


def test_several_damaged_newest_first(tmp_path: Path) -> None:
    save(tmp_path, [10, 20, 30])
    flip_bit(tmp_path / "20")
    truncate(tmp_path / "30")
    assert_restores(tmp_path, update=10, damaged=[30, 20])


def test_all_damaged(tmp_path: Path) -> None:
    save(tmp_path, [10, 20])
    flip_bit(tmp_path / "10")
    remove_index(tmp_path / "20")
    with CheckpointStore(tmp_path) as store, pytest.raises(UserError) as caught:
        store.restore(LIKE)
    for words in (str(tmp_path), "update 10 is damaged", "update 20 is damaged"):
        assert words in str(caught.value)


@pytest.mark.parametrize("exists", [True, False])
def test_no_checkpoint(tmp_path: Path, exists: bool) -> None:
    folder = tmp_path if exists else tmp_path / "nowhere"
    with CheckpointStore(folder) as store:
        with pytest.raises(UserError, match="There is no checkpoint in") as caught:
            store.restore(LIKE)
        assert str(folder) in str(caught.value)
        assert store.updates() == []
    assert folder.exists() == exists


def test_after_a_fallback_the_run_writes_its_history_anew(tmp_path: Path) -> None:
    save(tmp_path, [10, 20, 30])
    flip_bit(tmp_path / "20")
    flip_bit(tmp_path / "30")
    with CheckpointStore(tmp_path) as store:
        assert store.restore(LIKE).update == 10
        store.save(20, state_of(20), {"line": 20})
        store.wait()
        assert store.updates() == [10, 20]
    assert_restores(tmp_path, update=20, damaged=[])


def test_an_equal_checkpoint_is_left_alone(tmp_path: Path) -> None:
    """While it is being replaced, a kill would lose it."""
    save(tmp_path, [10])
    inode = (tmp_path / "10").stat().st_ino
    with CheckpointStore(tmp_path) as store:
        store.restore(LIKE)
        store.save(10, state_of(10), {"line": 10})
        store.wait()
        assert (tmp_path / "10").stat().st_ino == inode
        store.save(10, state_of(11), {"line": 10})
        assert store.restore(LIKE).state["theta"].tobytes() == state_of(11)["theta"].tobytes()


def other_structures() -> dict[str, tuple[Any, str]]:
    theta, key = LIKE["theta"], LIKE["key"]
    return {
        "shape": ({"theta": theta[1:], "key": key}, r"\['theta'\] is float64\[1000, 7\] in the"),
        "dtype": ({"theta": theta.astype(np.float32), "key": key}, r"but float32\[1000, 7\] is"),
        "missing": (LIKE | {"xi": theta}, r"\['xi'\] is missing from the checkpoint"),
        "renamed": ({"theta": theta, "keys": key}, r"\['keys'\] is missing from the checkpoint"),
        "container": ([theta, key], r"\[0\] is missing from the checkpoint"),
        "typed key": (LIKE | {"key": jax.random.key(0)}, r"but uint32\[2\] is expected"),
    }


@pytest.mark.parametrize("kind", other_structures())
def test_another_structure_is_refused(tmp_path: Path, kind: str) -> None:
    """It does not count as damage: an older checkpoint that fits is not used instead."""
    like, words = other_structures()[kind]
    with CheckpointStore(tmp_path) as store:
        store.save(10, like, {})
        store.save(20, LIKE, {})
        with pytest.raises(UserError, match=words) as caught:
            store.restore(like)
    assert str(tmp_path) in str(caught.value)


def test_arrays_that_are_not_needed_are_left_out(tmp_path: Path) -> None:
    """An older version may have saved more arrays."""
    with CheckpointStore(tmp_path) as store:
        store.save(10, LIKE, {})
        state = store.restore({"theta": LIKE["theta"]}).state
    assert list(state) == ["theta"] and state["theta"].tobytes() == LIKE["theta"].tobytes()


@pytest.mark.parametrize("keep", [1, 2])
def test_keep(tmp_path: Path, keep: int) -> None:
    save(tmp_path, [2, 9, 10, 11, 100], keep)
    assert sorted(path.name for path in tmp_path.iterdir()) == sorted(["11", "100"][-keep:])
    assert_restores(tmp_path, update=100, damaged=[])


def put_file(path: Path, elsewhere: Path) -> None:
    path.write_text("mine")


def put_dangling_link(path: Path, elsewhere: Path) -> None:
    path.symlink_to("nowhere")


def put_link(path: Path, elsewhere: Path) -> None:
    (elsewhere / "kept").mkdir(parents=True)
    path.symlink_to(elsewhere)


@pytest.mark.parametrize("put", [put_file, put_dangling_link, put_link])
def test_what_is_not_a_checkpoint_is_left_out_and_moved_out_of_the_way(
    put: Callable[[Path, Path], None], tmp_path: Path
) -> None:
    checkpoints, elsewhere = tmp_path / "checkpoints", tmp_path / "elsewhere"
    save(checkpoints, [10])
    put(checkpoints / "20", elsewhere)
    (checkpoints / "020").mkdir()  # no number that a checkpoint has
    with CheckpointStore(checkpoints, keep=1) as store:
        assert store.updates() == [10]
        restored = store.restore(LIKE)
        assert restored.update == 10
        assert restored.damaged == [f"{checkpoints}/20 is not the folder of a checkpoint, and is left out."]
        for update in (20, 30):
            store.save(update, state_of(update), {"line": update})
    names = sorted(path.name for path in checkpoints.iterdir())
    assert names == ["020", "20.not-a-checkpoint", "30"]
    assert put is not put_file or (checkpoints / "20.not-a-checkpoint").read_text() == "mine"
    assert put is not put_link or (elsewhere / "kept").is_dir()


def test_keep_below_one(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="keep is 0"):
        CheckpointStore(tmp_path, keep=0)


def test_what_was_left_unfinished_is_removed(tmp_path: Path) -> None:
    save(tmp_path, [10])
    for name in ("20.unfinished", "30.unfinished.orbax-checkpoint-tmp", "40.unfinished-removal"):
        shutil.copytree(tmp_path / "10", tmp_path / name)
    (tmp_path / "notes.txt").write_text("mine")
    with CheckpointStore(tmp_path) as store:
        assert sorted(path.name for path in tmp_path.iterdir()) == ["10", "notes.txt"]
        assert store.updates() == [10]
