"""Files and folders that are written whole and survive a power cut."""

from __future__ import annotations

import contextlib
import errno
import os
import secrets
from collections.abc import Iterator
from io import BufferedRandom
from pathlib import Path

# The end of the name of a file that is not complete yet. Only a killed process leaves one behind.
PARTIAL = ".partial"


@contextlib.contextmanager
def whole_file(path: Path) -> Iterator[BufferedRandom]:
    """Open a temporary file next to `path`; at the end of the block it takes the place of `path`.

    Other processes, and those that run after a crash or a power cut, find either the whole new file or what
    was at `path` before.

    Args:
      path: the file; an existing file is replaced.

    Yields:
      The temporary file, for writing and reading bytes.

    Raises:
      OSError: the file could not be written; an existing file is unchanged.
    """
    partial = path.with_name(f"{path.name}.{secrets.token_hex(4)}{PARTIAL}")
    try:
        with partial.open("xb+") as file:
            yield file
            file.flush()
            os.fsync(file.fileno())
        partial.replace(path)
    except BaseException:
        with contextlib.suppress(OSError):
            partial.unlink()
        raise
    sync(path.parent)


def write_whole(path: Path, content: bytes | str) -> None:
    """Write a file as `whole_file` does.

    Args:
      path: the file; an existing file is replaced.
      content: bytes, or text that is encoded as UTF-8.

    Raises:
      OSError: the file could not be written; an existing file is unchanged.
    """
    with whole_file(path) as file:
        file.write(content.encode() if isinstance(content, str) else content)


def make_folder(path: Path) -> None:
    """Create a folder and its missing parents, so that they survive a power cut.

    Raises:
      OSError: a folder could not be created.
    """
    try:
        path.mkdir()
    except FileExistsError:
        if not path.is_dir():
            raise
    except FileNotFoundError:
        if path.parent.is_dir():  # nobody may create a folder in /proc
            raise
        make_folder(path.parent)
        make_folder(path)
    else:
        sync(path.parent)


def sync(path: Path) -> None:
    """Wait until a file's content, or the names in a folder, are on the disk.

    Raises:
      OSError: the disk failed.
    """
    if os.name == "nt":  # Windows cannot sync a folder
        return
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    except OSError as error:
        if error.errno != errno.EINVAL:  # some network file systems cannot sync a folder
            raise
    finally:
        os.close(descriptor)


def sync_tree(folder: Path) -> None:
    """Wait until everything in a folder is on the disk, except its own name.

    Raises:
      OSError: the disk failed.
    """
    for path in folder.rglob("*"):
        sync(path)
    sync(folder)
