"""A disk that gets full."""

from __future__ import annotations

import contextlib
import errno
import os
from collections.abc import Iterator
from pathlib import Path
from unittest import mock

NO_SPACE = OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))


@contextlib.contextmanager
def full_disk_at(path: Path) -> Iterator[None]:
    """Let the disk get full while a file is written."""
    begin, fsync = os.path.abspath(path), os.fsync

    def fsync_unless_full(descriptor: int) -> None:
        if os.readlink(f"/proc/self/fd/{descriptor}").startswith(begin):
            raise NO_SPACE
        fsync(descriptor)

    with mock.patch("os.fsync", fsync_unless_full):
        yield
