"""The run folder: the paths of its files, and the metrics file."""

from __future__ import annotations

import contextlib
import errno
import io
import json
import logging
import math
import os
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import IO, Any

from learned_opt import UserError
from learned_opt._src.files import PARTIAL, make_folder, sync, write_whole
from learned_opt._src.optimizer_file import FILE_NAME
from meta_train.run.config import Config, save_config
from meta_train.run.lock import LOCK, locked

RUNS = Path("runs")

logger = logging.getLogger(__name__)


class RunFolder:
    """Paths of one run.

    Attributes:
      path: the folder.
    """

    def __init__(self, path: Path) -> None:
        self.path = path

    @property
    def config(self) -> Path:
        """The resolved settings."""
        return self.path / "config.yaml"

    @property
    def metrics(self) -> Path:
        """The metrics: one line of JSON per update."""
        return self.path / "metrics.jsonl"

    @property
    def checkpoints(self) -> Path:
        """The folder of the newest checkpoints."""
        return self.path / "checkpoints"

    @property
    def origin(self) -> Path:
        """Copy of the optimizer file that the run started from, if it did not start from fresh weights."""
        return self.path / "start.safetensors"

    @property
    def optimizer(self) -> Path:
        """The optimizer file."""
        return self.path / FILE_NAME

    @property
    def report(self) -> Path:
        """The folder of tables and pictures."""
        return self.path / "report"

    def finished(self, updates: int) -> bool:
        """Whether the report, which is written last, exists and covers this number of updates."""
        path = self.report / "summary.json"
        try:
            summary = json.loads(path.read_text())
        except OSError:
            return False
        except (ValueError, RecursionError):
            summary = None
        if not isinstance(summary, dict):
            logger.warning("%s is damaged: the comparison is made again.", path)
            return False
        return summary.get("updates") == updates

    @contextlib.contextmanager
    def used(self) -> Iterator[RunFolder]:
        """Hold the lock of an existing run, and remove the files that a killed process did not complete.

        Raises:
          UserError: another process uses the folder.
        """
        with locked(self.path):
            for path in (*self.path.glob(f"*{PARTIAL}"), *self.report.glob(f"*{PARTIAL}")):
                if path.is_file():
                    path.unlink()
            yield self

    @classmethod
    @contextlib.contextmanager
    def create(cls, path: Path | None, config: Config) -> Iterator[RunFolder]:
        """Create and lock the folder of a new run; once ``config.yaml`` is in it, the run can be resumed.

        Args:
          path: its path, or None for the next free number under ``runs/``.
          config: the settings of the run.

        Raises:
          UserError: the folder exists and is not empty, is used by another process, or cannot be created.
        """
        advice = _advice(path)
        numbered = RUNS / config.task.name.rpartition(":")[2]
        with new_folder(path, numbered, what="run folder", advice=advice) as made:
            folder = cls(made)
            with _refusing("run folder", advice):
                save_config(config, folder.config)
            yield folder

    @classmethod
    def check_new(cls, path: Path) -> None:
        """Check, without creating anything, that nothing is known to stand in the way of ``create``.

        Raises:
          UserError: the folder exists and is not empty, or cannot be created.
        """
        advice = _advice(path)
        with _refusing("run folder", advice):
            existing = next(each for each in (path, *path.absolute().parents) if _exists(each))
            if not existing.is_dir():
                raise NotADirectoryError(errno.ENOTDIR, os.strerror(errno.ENOTDIR), str(existing))
            if not os.access(existing, os.W_OK):
                raise PermissionError(errno.EACCES, os.strerror(errno.EACCES), str(existing))
            if existing == path:
                _check_empty(path, "run folder", advice)

    @classmethod
    def open(cls, path: Path) -> RunFolder:
        """The folder of an existing run.

        Raises:
          UserError: the folder holds no run.
        """
        folder = cls(path)
        if not folder.config.is_file():
            raise UserError(
                f"there is no run to resume in {path}: {folder.config} is missing; give the folder that "
                "meta-train printed when it started"
            )
        return folder


@contextlib.contextmanager
def new_folder(path: Path | None, numbered: Path, *, what: str, advice: str) -> Iterator[Path]:
    """Create an empty folder, and hold its lock.

    A folder that holds only a lock counts as empty: a process was killed when it had just created it.

    Args:
      path: its path, or None for ``numbered-N`` with the lowest free N, even if other processes do the same.
      numbered: the path without its number.
      what: its name in messages.
      advice: what to do if it is not empty.

    Raises:
      UserError: the folder exists and is not empty, is used by another process, or cannot be created.
    """
    with contextlib.ExitStack() as held:
        with _refusing(what, advice):
            if path is None:
                path = _next_free(numbered)
            make_folder(path)
            _check_empty(path, what, advice)  # before a lock is put into a folder of something else
            held.enter_context(locked(path))
            _check_empty(path, what, advice)  # another process may have used the folder in between
        yield path


def _advice(path: Path | None) -> str:
    return f"choose another --run-dir, or continue that run with --resume {path}"


def _exists(path: Path) -> bool:
    """As ``path.exists()``, which calls a path that is too long missing in some versions of Python."""
    try:
        path.stat()
    except FileNotFoundError:
        return False
    return True


def _check_empty(path: Path, what: str, advice: str) -> None:
    if any(each.name != LOCK and not each.name.endswith(PARTIAL) for each in path.iterdir()):
        raise UserError(f"the {what} {path} exists and is not empty; {advice}")


def _next_free(numbered: Path) -> Path:
    make_folder(numbered.parent)
    number = 1
    while True:
        path = numbered.with_name(f"{numbered.name}-{number}")
        try:
            path.mkdir()
        except FileExistsError:
            number += 1
        else:
            sync(path.parent)
            return path


@contextlib.contextmanager
def _refusing(what: str, advice: str) -> Iterator[None]:
    """Turn a failure of the disk into a refusal."""
    try:
        yield
    except OSError as error:
        raise UserError(f"the {what} cannot be created ({error}); {advice.partition(',')[0]}") from None


class MetricsFile:
    """JSON lines, one per update; a context manager.

    Lines that are damaged or of later updates are removed when it is opened.

    Args:
      path: the file; None for a process that does not write one.
      update: number of updates that were made, of which the file should have the lines.

    Attributes:
      lost: number of lines that should be there, but are damaged or missing.
    """

    def __init__(self, path: Path | None, update: int = 0) -> None:
        self.lost = 0
        if path is None:
            self._file: IO[bytes] = io.BytesIO()
            return
        content = path.read_bytes() if path.exists() else b""
        kept: list[bytes] = []
        last = 0
        for line in content.splitlines(keepends=True):
            record = _intact(line)
            if record and last < record["update"] <= update:
                kept.append(line)
                last = record["update"]
        self.lost = update - len(kept)
        if not content.startswith(b"".join(kept)):
            write_whole(path, b"".join(kept))
        self._file = path.open("ab")
        self._file.truncate(sum(map(len, kept)))
        self._file.seek(0, os.SEEK_END)
        sync(path.parent)

    def write(self, record: Mapping[str, Any]) -> None:
        """Append a line, and flush it to the operating system."""
        self._file.write(json.dumps(record).encode() + b"\n")
        self._file.flush()

    def sync(self) -> None:
        """Wait until all lines are on the disk, as they must be before a checkpoint counts on them."""
        if not isinstance(self._file, io.BytesIO):
            os.fsync(self._file.fileno())

    def __enter__(self) -> MetricsFile:
        return self

    def __exit__(self, *exception: object) -> None:
        self._file.close()


def read_metrics(path: Path) -> Iterator[dict[str, Any]]:
    """The lines of a metrics file, without those that are damaged."""
    with path.open("rb") as file:
        for line in file:
            if record := _intact(line):
                yield record


def _intact(line: bytes) -> dict[str, Any] | None:
    """A line of a metrics file; None if it is damaged, or is not a line of metrics."""

    def is_number(value: Any) -> bool:
        return isinstance(value, int | float) and math.isfinite(value)

    try:
        record = json.loads(line) if line.endswith(b"\n") else None
        numbers = isinstance(record, dict) and (
            type(record.get("update")) is int
            and is_number(record.get("steps"))
            and all(record[name] is None or is_number(record[name]) for name in ("loss", "gradient_norm"))
        )
    except (ValueError, KeyError, OverflowError, RecursionError):
        return None
    return record if numbers else None
