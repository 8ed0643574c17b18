"""The lock of a folder: one process at a time works in it."""

from __future__ import annotations

import contextlib
import fcntl
import logging
import os
import socket
from collections.abc import Iterator
from datetime import datetime
from pathlib import Path

from learned_opt import UserError

# The name of the file that is locked. It says who holds the lock, and is empty when nobody does.
LOCK = "lock"

logger = logging.getLogger(__name__)


@contextlib.contextmanager
def locked(folder: Path) -> Iterator[None]:
    """Hold the lock of a folder; the operating system releases it when the process ends in any way.

    A file system that has no locks, or keeps them on each host, gets one line of warning.

    Args:
      folder: an existing folder.

    Raises:
      UserError: another process holds the lock; the message says which, and since when.
      OSError: the file cannot be written.
    """
    with (folder / LOCK).open("a+", errors="replace") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            file.seek(0)
            holder = file.read(200) or "another process"
            raise UserError(
                f"{folder} is in use by {holder}; wait until that process ends, or stop it"
            ) from None
        except OSError as error:
            logger.warning(
                "The disk of %s has no locks (%s): make sure that no other process uses this folder.",
                folder,
                error.strerror,
            )
        else:
            if _is_local(folder, Path("/proc/self/mountinfo")):
                logger.warning(
                    "The disk of %s is mounted without locks between hosts: make sure that no process on "
                    "another host uses this folder.",
                    folder,
                )
        now = datetime.now().astimezone().isoformat(" ", "seconds")
        file.truncate(0)
        file.write(f"process {os.getpid()} on {socket.gethostname()}, since {now}")
        file.flush()
        try:
            yield
        finally:
            file.truncate(0)


def _is_local(folder: Path, mounts: Path) -> bool:
    """Whether locks on a network disk are only seen on this host, by the options of its mount."""
    device = os.stat(folder).st_dev
    number = f"{os.major(device)}:{os.minor(device)}"
    lines = mounts.read_text().splitlines() if mounts.exists() else []
    options = [line.rpartition(" ")[2].split(",") for line in lines if line.split()[2] == number]
    return any({"nolock", "local_lock=all", "local_lock=flock", "localflock"} & set(each) for each in options)
