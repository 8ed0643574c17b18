"""The run folder: the paths of its files, and the metrics file."""

from __future__ import annotations

import io
import json
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import IO, Any

from learned_opt import UserError
from learned_opt._src.optimizer_file import FILE_NAME

RUNS = Path("runs")


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
        try:
            return json.loads((self.report / "summary.json").read_text())["updates"] == updates
        except (OSError, ValueError, KeyError):
            return False

    @classmethod
    def create(cls, path: Path | None, task: str) -> RunFolder:
        """Create the folder of a new run.

        Args:
          path: its path, or None for the next free number under ``runs/``.
          task: name of the task, for the name of the folder.

        Raises:
          UserError: the folder exists and is not empty, or cannot be created.
        """
        return cls(
            new_folder(
                path,
                RUNS / task.rpartition(":")[2],
                what="run folder",
                advice=f"choose another --run-dir, or continue that run with --resume {path}",
            )
        )

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


def new_folder(path: Path | None, numbered: Path, *, what: str, advice: str) -> Path:
    """Create an empty folder.

    Args:
      path: its path, or None for ``numbered-N`` with the lowest free N, even if other processes do the same.
      numbered: the path without its number.
      what: its name in messages.
      advice: what to do if it is not empty.

    Raises:
      UserError: the folder exists and is not empty, or cannot be created.
    """
    try:
        if path is not None:
            path.mkdir(parents=True, exist_ok=True)
            if any(path.iterdir()):
                raise UserError(f"the {what} {path} exists and is not empty; {advice}")
            return path
        numbered.parent.mkdir(parents=True, exist_ok=True)
        number = 1
        while True:
            path = numbered.with_name(f"{numbered.name}-{number}")
            try:
                path.mkdir()
                return path
            except FileExistsError:
                number += 1
    except OSError as error:
        raise UserError(f"the {what} cannot be created ({error}); {advice.partition(',')[0]}") from None


class MetricsFile:
    """JSON lines, one per update; a context manager.

    Args:
      path: the file; None for a process that does not write one.
      position: number of bytes to keep: the length that the file had at the checkpoint of a resumed run.

    Raises:
      UserError: the file is shorter than that.
    """

    def __init__(self, path: Path | None, position: int = 0) -> None:
        if path is None:
            self._file: IO[bytes] = io.BytesIO()
            return
        size = path.stat().st_size if path.exists() else 0
        if size < position:
            raise UserError(
                f"{path} has {size} bytes, but had {position} when the checkpoint was saved; restore the "
                "lost lines, or start a new run"
            )
        self._file = path.open("ab")
        self._file.truncate(position)
        self._file.seek(position)

    @property
    def position(self) -> int:
        """Bytes written so far."""
        return self._file.tell()

    def write(self, record: Mapping[str, Any]) -> None:
        """Append a line, and flush it to the operating system."""
        self._file.write(json.dumps(record).encode() + b"\n")
        self._file.flush()

    def __enter__(self) -> MetricsFile:
        return self

    def __exit__(self, *exception: object) -> None:
        self._file.close()


def read_metrics(path: Path) -> Iterator[dict[str, Any]]:
    """The lines of a metrics file."""
    with path.open() as file:
        for line in file:
            yield json.loads(line)
