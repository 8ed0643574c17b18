"""A disk whose power may fail at any moment of a test, and which then has only what was synced."""

from __future__ import annotations

import contextlib
import os
import stat
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NamedTuple
from unittest import mock

# The content of files by path, relative to the folder; None for a folder.
Image = dict[str, bytes | None]


class Cut(NamedTuple):
    """What a power cut would leave."""

    image: Image
    promised: int  # what `Disk.promise` was last given


class Disk:
    """Records what a power cut would leave in a folder, after every call that syncs, names or removes a file.

    A file has the content with which it was last synced, and is empty if it never was. What a folder has
    depends on the file system, and three kinds are tried: the names with which it was last synced; those
    without the names that were removed since; all names, as a journal may write them before any content.

    Attributes:
      cuts: the power cuts, without repetitions.
    """

    def __init__(self, folder: Path) -> None:
        self._root = folder
        self._contents: dict[int, bytes] = {}  # of files, by inode
        # Of folders, by inode: inodes of what is in them, and whether it is a folder.
        self._names: dict[int, dict[str, tuple[int, bool]]] = {}
        self._kept: list[int] = []  # descriptors that keep inodes from being used again
        self._lock = threading.RLock()
        self._seen: set[Any] = set()
        self._promised = -1
        self.cuts: list[Cut] = []

    def promise(self, number: int) -> None:
        """From now on, a cut must not lose this."""
        with self._lock:
            self._promised = number

    @contextlib.contextmanager
    def recorded(self) -> Iterator[None]:
        """Record while it is entered."""
        with contextlib.ExitStack() as patches:
            for name in ("rename", "replace", "unlink", "rmdir", "mkdir"):
                patches.enter_context(mock.patch(f"os.{name}", self._cutting(getattr(os, name))))
            patches.enter_context(mock.patch("os.fsync", self._cutting(self._sync)))
            yield
        for descriptor in self._kept:
            os.close(descriptor)

    def _cutting(self, function: Callable[..., Any]) -> Callable[..., Any]:
        def call(*args: Any, **kwargs: Any) -> Any:
            with self._lock:
                result = function(*args, **kwargs)
                for image in (self._synced(), self._synced(removals=True), self._journaled()):
                    key = (self._promised, frozenset(image.items()))
                    if key not in self._seen:
                        self._seen.add(key)
                        self.cuts.append(Cut(image, self._promised))
            return result

        return call

    def _sync(self, descriptor: int) -> None:
        self._kept.append(os.dup(descriptor))
        status = os.fstat(descriptor)
        if stat.S_ISDIR(status.st_mode):
            with os.scandir(descriptor) as entries:
                self._names[status.st_ino] = {
                    entry.name: (entry.inode(), entry.is_dir()) for entry in entries
                }
        else:
            self._contents[status.st_ino] = Path(f"/proc/self/fd/{descriptor}").read_bytes()

    def _synced(self, removals: bool = False) -> Image:
        image: Image = {}

        def add(folder: int, prefix: str, path: Path | None) -> None:
            for name, (inode, is_folder) in self._names.get(folder, {}).items():
                now = path / name if path else None
                if now and not os.path.lexists(now):
                    continue
                image[prefix + name] = None if is_folder else self._contents.get(inode, b"")
                same = now and now.lstat().st_ino == inode
                add(inode, f"{prefix}{name}/", now if same else None)

        add(self._root.stat().st_ino, "", self._root if removals else None)
        return image

    def _journaled(self) -> Image:
        image: Image = {}
        for path in self._root.rglob("*"):
            with contextlib.suppress(FileNotFoundError):  # another thread has just renamed it
                inode = path.stat().st_ino
                content = None if path.is_dir() else self._contents.get(inode, b"")
                image[str(path.relative_to(self._root))] = content
        return image


def write(image: Image, folder: Path) -> None:
    """Write what a power cut left into a new folder."""
    folder.mkdir()
    for name, content in sorted(image.items()):
        path = folder / name
        if content is None:
            path.mkdir()
        else:
            path.write_bytes(content)
