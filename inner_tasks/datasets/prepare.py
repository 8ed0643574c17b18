"""Preparing the TFDS copy of a data set from its official files, without TensorFlow."""

from __future__ import annotations

import fcntl
import os
import shutil
import signal
import tempfile
import threading
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path
from types import FrameType

from inner_tasks.datasets.display import progress_bar, say
from inner_tasks.datasets.official import OFFICIAL, DownloadError, download, find_manual, open_url
from learned_opt._src.errors import LearnedOptError, UserError
from learned_opt._src.files import sync, sync_tree

# The start of the name of a temporary folder.
_INCOMPLETE = "incomplete."


def prepare(name: str, data_dir: Path) -> Path:
    """Prepare a data set from its official files, downloading the missing ones.

    Everything is built in a temporary folder and moved to its place at the end, so that a failure
    leaves nothing behind and two processes do not interfere with each other. What a process that was
    killed has left behind is removed.

    Args:
        name: a key of `OFFICIAL`.
        data_dir: folder of TFDS sets; created if it is missing.

    Returns:
        The new folder `<data_dir>/<name>/<version>`.

    Raises:
        UserError: a file is missing and cannot be downloaded; raised within 10 seconds.
        LearnedOptError: the disk is full, or the folder cannot be written.
    """
    images, address, digests, sizes = OFFICIAL[name]
    try:
        files = find_manual(name, data_dir)
        missing = [file for file in digests if file not in files]
        if missing:
            open_url(address + missing[0]).close()  # before any folder is created
        with _signals_raise(), _scratch_folder(data_dir) as scratch:
            for file, size in zip(digests, sizes, strict=True):
                if file in missing:
                    files[file] = download(address + file, digests[file], size, scratch)
            with progress_bar(f"Preparing {name}", images, "images") as advance:
                made = _build(name, files, scratch, advance)
            return _move(made, data_dir / name)
    except DownloadError as error:
        raise UserError(
            f"The data set {name} is not in '{data_dir}', and {error}: connect to the network, set "
            "--data-dir or TFDS_DATA_DIR to a folder that contains it, or put the official files "
            f"({', '.join(digests)}) in '{data_dir / 'downloads' / 'manual' / name}'."
        ) from error
    except OSError as error:
        raise LearnedOptError(
            f"The data set {name} cannot be prepared in '{data_dir}' ({error.strerror or error}): "
            "set --data-dir or TFDS_DATA_DIR to a writable folder with enough space."
        ) from error


@contextmanager
def _signals_raise() -> Iterator[None]:
    """Let SIGTERM and SIGHUP raise SystemExit instead of killing the program, so that nothing is left behind.

    Only in the main thread, and only where they would kill it.
    """
    main = threading.current_thread() is threading.main_thread()
    deadly = [n for n in (signal.SIGTERM, signal.SIGHUP) if main and signal.getsignal(n) == signal.SIG_DFL]

    def stop(number: int, frame: FrameType | None) -> None:
        for each in deadly:
            signal.signal(each, signal.SIG_IGN)
        say(f"Stopped by {signal.Signals(number).name} while a data set was prepared.")
        raise SystemExit(128 + number)

    for number in deadly:
        signal.signal(number, stop)
    try:
        yield
    finally:
        for number in deadly:
            signal.signal(number, signal.SIG_DFL)


@contextmanager
def _scratch_folder(data_dir: Path) -> Iterator[Path]:
    is_new = not data_dir.exists()
    data_dir.mkdir(parents=True, exist_ok=True)
    try:
        with ExitStack() as held:
            with _locked(data_dir, fcntl.LOCK_EX):  # nobody removes the new folder before it is locked
                _remove_abandoned(data_dir)
                scratch = held.enter_context(tempfile.TemporaryDirectory(prefix=_INCOMPLETE, dir=data_dir))
                held.enter_context(_locked(Path(scratch), fcntl.LOCK_EX))
            yield Path(scratch)
    finally:
        if is_new:
            with suppress(OSError):  # the folder is not empty: the preparation succeeded
                data_dir.rmdir()


def _remove_abandoned(data_dir: Path) -> None:
    """Remove the temporary folders of processes that were killed: those that nobody holds the lock of."""
    for folder in data_dir.glob(f"{_INCOMPLETE}*"):
        with suppress(OSError), _locked(folder, fcntl.LOCK_EX | fcntl.LOCK_NB) as is_locked:
            if is_locked:
                shutil.rmtree(folder)


@contextmanager
def _locked(folder: Path, how: int) -> Iterator[bool]:
    """Hold the lock of a folder, or yield False: another process holds it, or the disk has no locks."""
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        try:
            fcntl.flock(descriptor, how)
            is_locked = True
        except OSError:
            is_locked = False
        yield is_locked
    finally:
        os.close(descriptor)


def _build(name: str, files: dict[str, Path], scratch: Path, advance: Callable[[float], None]) -> Path:
    from inner_tasks.datasets import tfds_bridge  # takes a second to import

    with tfds_bridge.silence():
        return tfds_bridge.build(name, files, scratch, advance)


def _move(made: Path, parent: Path) -> Path:
    parent.mkdir(exist_ok=True)
    folder = parent / made.name
    try:
        sync_tree(made)
        os.rename(made, folder)
        sync(parent)
    except OSError:
        if not (folder / "dataset_info.json").exists():  # else another process was faster
            raise
    return folder
