"""The checkpoints of one run: saved in the background, restored from the newest intact one."""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import re
import shutil
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import Any, NamedTuple, Self

import numpy as np

from checkpoints.host_arrays import (
    PyTree,
    copy_to_host,
    describe,
    describe_leaf,
    digest,
    first_difference,
    unflatten,
)
from checkpoints.parts import strangers_in, updates_in
from learned_opt._src.errors import LearnedOptError, UserError, printable
from learned_opt._src.files import make_folder, sync, sync_tree

# The suffix of a checkpoint that is not complete, or no longer.
_UNFINISHED = ".unfinished"


class Restored(NamedTuple):
    """The result of `CheckpointStore.restore`."""

    update: int  # the update number of the checkpoint that was read
    state: PyTree  # in the structure of `like`; NumPy arrays, bit for bit as saved
    metadata: dict[str, Any]  # the JSON metadata that was saved with it
    damaged: list[str]  # one plain sentence per newer checkpoint that was skipped, with the reason


class CheckpointStore:
    """The checkpoints in one folder, each in a subfolder named by its update number.

    A checkpoint appears whole or not at all, even if the process is killed or the power fails. It includes
    a SHA-256 digest of every array, because Orbax does not detect a flipped bit. Only one process at a time
    may use a folder.

    Args:
      folder: created at the first save; unfinished checkpoints of an earlier process are removed.
      keep: number of checkpoints to keep on disk, at least 1.

    Raises:
      UserError: `keep` is below 1.

    Example:
      >>> with CheckpointStore(run / "checkpoints") as store:
      ...     store.save(10, state, {"metrics_bytes": 1234})
      >>> with CheckpointStore(run / "checkpoints") as store:
      ...     update, state, metadata, damaged = store.restore(like=initial_state)
    """

    def __init__(self, folder: Path, keep: int = 3) -> None:
        if keep < 1:
            raise UserError(f"keep is {keep}; at least 1 checkpoint must be kept.")
        from checkpoints import orbax_files  # only when a store is created: it imports Orbax

        self._files = orbax_files
        self._folder = Path(folder)
        self._keep = keep
        self._writer = ThreadPoolExecutor(max_workers=1, thread_name_prefix="checkpoint")
        self._pending: Future[None] | None = None
        # The update number and index digest of a checkpoint that is known to be intact.
        self._known: tuple[int, str] | None = None
        self._remove_unfinished()

    def save(self, update: int, state: PyTree, metadata: dict[str, Any]) -> None:
        """Saves `state` in the background; returns as soon as its arrays are copied.

        Waits for the previous save if it is still running. Checkpoints of `update` or later that are in
        the folder (damaged ones that `restore` skipped) are replaced.

        Args:
          update: number of updates that led to `state`; at least 0.
          state: a pytree of JAX or NumPy arrays of any numeric dtype, typed keys and scalars.
          metadata: JSON values (anything else is a TypeError).

        Raises:
          LearnedOptError: the previous save failed (disk full, folder read-only). This one is then
            not started; the checkpoints on disk are unchanged.
          UserError: a leaf of `state` is not numeric.
        """
        self.wait()
        arrays = copy_to_host(state)
        frozen_metadata = json.dumps(metadata)
        self._pending = self._writer.submit(self._write, update, arrays, frozen_metadata)

    def restore(self, like: PyTree, newest: int | None = None) -> Restored:
        """Reads the newest intact checkpoint.

        Args:
          like: a pytree of arrays, scalars or `jax.ShapeDtypeStruct` with the structure, shapes
            and dtypes of the saved state. Values and shardings do not matter. Saved arrays that are
            not in it are left out: an older version may have saved more than is needed.
          newest: checkpoints of later updates are skipped silently.

        Returns:
          The state as NumPy arrays (typed keys as such, scalars as arrays of shape ()), and a list of
          damaged checkpoints.

        Raises:
          UserError: there is no checkpoint, none is intact, or the newest intact one lacks an array
            of `like` or has it with another dtype or shape.
          LearnedOptError: a background save has failed.
        """
        self.wait()
        expected = describe(like)
        strangers = strangers_in(self._folder)
        damaged = [f"{path} is not the folder of a checkpoint, and is left out." for path in strangers]
        for update in reversed(self.updates()):
            if newest is not None and update > newest:
                continue
            try:
                index = self._read_index(update)
                difference = first_difference(expected, index["arrays"])
                arrays = {} if difference else self._read_arrays(update, index)
            except Exception as error:  # damage can appear as any exception of Orbax
                reason = str(error) if isinstance(error, _DamagedError) else "it cannot be read"
                damaged.append(f"The checkpoint of update {update} is damaged: {reason}.")
                continue
            if difference:
                raise UserError(
                    f"The checkpoint of update {update} in {self._folder} does not fit this run: "
                    f"{difference}. Resume it with the settings that it was saved with."
                )
            self._known = (update, index["digest"])
            return Restored(update, unflatten(like, arrays), index["metadata"], damaged)
        if damaged:
            raise UserError(f"No checkpoint in {self._folder} can be restored. {' '.join(damaged)}")
        raise UserError(f"There is no checkpoint in {self._folder}: check the folder, or start a new run.")

    def updates(self) -> list[int]:
        """The update numbers of the checkpoints on disk, ascending, including damaged ones."""
        return sorted(updates_in(self._folder))

    def clear(self) -> None:
        """Removes all checkpoints, the newest last, and the folder if it is then empty."""
        self.wait()
        for update in self.updates():
            self._remove(update)
        with contextlib.suppress(OSError):
            self._folder.rmdir()

    def wait(self) -> None:
        """Waits until the background save, if any, is on disk.

        Raises:
          LearnedOptError: the save failed. It is raised once; later saves can still be tried.
        """
        if self._pending is not None:
            error = self._pending.exception()
            self._pending = None
            if error is not None:
                raise error

    def close(self) -> None:
        """Waits like `wait`, and ends the background thread."""
        self._writer.shutdown()
        self.wait()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, error_type: type[BaseException] | None, *_: object) -> None:
        try:
            self.close()
        except LearnedOptError:
            if error_type is None:  # otherwise the error being raised says more
                raise

    def _write(self, update: int, arrays: dict[str, np.ndarray], metadata: str) -> None:
        """Runs in the background thread."""
        index = {
            "metadata": json.loads(metadata),
            "arrays": {
                path: describe_leaf(array) | {"sha256": digest(array)} for path, array in arrays.items()
            },
        }
        index["digest"] = _index_digest(index)
        if self._known == (update, index["digest"]) and update in self.updates():
            return  # replacing an intact checkpoint with an identical one would only put it at risk
        self._known = None
        try:
            make_folder(self._folder)
            self._remove_unfinished()  # files that Orbax's threads wrote after a save had failed
            unfinished = self._folder / f"{update}{_UNFINISHED}"
            self._files.write(unfinished, arrays, index)
            # The checkpoint is on the disk before it counts, and before it takes the place of others.
            sync_tree(unfinished)
            self._remove(update)
            unfinished.rename(self._folder / str(update))
            sync(self._folder)
            self._known = (update, index["digest"])
            earlier = [number for number in self.updates() if number <= update]
            for number in set(self.updates()) - set(earlier[-self._keep :]):
                self._remove(number)
        except Exception as error:
            self._remove_unfinished()
            raise LearnedOptError(
                f"The checkpoint of update {update} could not be saved in {self._folder}: "
                f"{_reason(error)}. Make sure that the folder is writable and that its disk has space; "
                "the earlier checkpoints can still be restored."
            ) from error

    def _read_index(self, update: int) -> dict[str, Any]:
        index = self._files.read_index(self._folder / str(update))
        if index.get("digest") != _index_digest(index):
            raise _DamagedError("its index differs from what was saved")
        return index

    def _read_arrays(self, update: int, index: dict[str, Any]) -> dict[str, np.ndarray]:
        like = {
            path: np.empty(saved["shape"], np.dtype(saved["dtype"]))
            for path, saved in index["arrays"].items()
        }
        arrays = self._files.read_arrays(self._folder / str(update), like)
        arrays = {path: np.asarray(array, order="C") for path, array in arrays.items()}
        for path, saved in index["arrays"].items():
            if digest(arrays[path]) != saved["sha256"]:
                raise _DamagedError(f"the array {printable(path)} differs from what was saved")
        return arrays

    def _remove(self, update: int) -> None:
        """Removes a checkpoint, renaming it first so that it is never half deleted under its own name.

        Anything else with that name is not ours: it is only moved out of the way.
        """
        path = self._folder / str(update)
        if path in strangers_in(self._folder):
            path.rename(path.with_name(f"{path.name}.not-a-checkpoint"))
        elif path.exists():
            shutil.rmtree(path.rename(path.with_name(f"{path.name}{_UNFINISHED}-removal")))

    def _remove_unfinished(self) -> None:
        for path in self._folder.glob(f"*{_UNFINISHED}*"):
            shutil.rmtree(path, ignore_errors=True)


class _DamagedError(Exception):
    """A checkpoint is damaged; the message says how."""


def _index_digest(index: dict[str, Any]) -> str:
    content = {"metadata": index["metadata"], "arrays": index["arrays"]}
    return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()


def _reason(error: Exception) -> str:
    """The operating system's message, without the paragraphs that TensorStore adds."""
    code = re.search(r"os_error_code='(\d+)'", str(error))
    number = getattr(error, "errno", None) or (int(code[1]) if code else None)
    return os.strerror(number).lower() if number else str(error).split("\n")[0]
