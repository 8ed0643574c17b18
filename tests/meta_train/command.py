"""Running `meta-train` in a test: in this process, which is faster, or in a separate one."""

from __future__ import annotations

import contextlib
import io
import json
import os
import shlex
import subprocess
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple
from unittest import mock

from learned_opt import read
from meta_train.commands import learned_opt as learned_opt_command
from meta_train.commands import meta_train as meta_train_command
from meta_train.commands import pes_paper as pes_paper_command
from meta_train.commands.exit_codes import exit_code_of
from meta_train.report.comparison import Comparison
from meta_train.run.folder import MetricsFile

ROOT = Path(meta_train_command.__file__).parents[2]
# The smallest run with all features: windows that do not divide an episode, and pairs for 4 devices.
TINY = (
    "--task.horizon 10 --task.hidden 4 --task.objective training-loss --optimizer mlp "
    "--outer.learning-rate 0.02 "
    "--estimator.sigma 0.03 --estimator.truncation 4 --estimator.particles 8 "
    "--evaluation.steps 5 --evaluation.seeds 1 --evaluation.learning-rates 3 --wandb disabled"
)
TINY_RIVALS = ("adam", "sgdm-linear")


class Outcome(NamedTuple):
    """Exit code and output of a command."""

    code: int
    out: str
    err: str


class Run(NamedTuple):
    """A finished run."""

    path: Path
    outcome: Outcome
    comparison: Comparison

    @property
    def optimizer(self) -> bytes:
        return (self.path / "optimizer.safetensors").read_bytes()


def words(*argv: object) -> list[str]:
    """A command line: strings are split as in a shell, lists are words, anything else is one word."""

    def split(part: object) -> list[str]:
        return shlex.split(part) if isinstance(part, str) else part if isinstance(part, list) else [str(part)]

    return [word for part in argv for word in split(part)]


def in_process(program: str, command: Callable[[Sequence[str]], None], *argv: object) -> Outcome:
    """Run a command in this process, like its entry point."""
    out, err = io.StringIO(), io.StringIO()
    with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
        try:
            code = exit_code_of(program, command, words(*argv))
        except SystemExit as ended:  # tyro, on a malformed flag or --help
            code = ended.code or 0
    return Outcome(code, out.getvalue(), err.getvalue())


def meta_train(*argv: object) -> Outcome:
    """Run `meta-train` in this process."""
    return in_process("meta-train", meta_train_command.command, *argv)


def learned_opt(*argv: object) -> Outcome:
    """Run `learned-opt` in this process."""
    return in_process("learned-opt", learned_opt_command.command, *argv)


def pes_paper(*argv: object) -> Outcome:
    """Run `pes-paper` in this process."""
    return in_process("pes-paper", pes_paper_command.command, *argv)


def without_comparing(comparison: Comparison) -> contextlib.AbstractContextManager[Any]:
    """Make runs use this comparison instead of computing one, which takes most of the time of a small run."""
    return mock.patch("meta_train.run.learning.compare", lambda *_, **__: comparison)


@contextlib.contextmanager
def with_memory(size: int) -> Iterator[None]:
    """Make commands believe that this machine has so many bytes of memory."""
    with (
        mock.patch("meta_train.devices.choice.memory_of_host", lambda: size),
        mock.patch("meta_train.report.evaluation.memory_of_host", lambda: size),
    ):
        yield


@contextlib.contextmanager
def against(*rivals: str) -> Iterator[None]:
    """Limit comparisons to these rivals, because each rival is a program to compile."""
    with (
        mock.patch("meta_train.run.learning.DEFAULT_BASELINES", rivals),
        mock.patch("meta_train.report.baselines.DEFAULT_BASELINES", rivals),
    ):
        yield


def start(*argv: object, program: str | None = None) -> subprocess.Popen[str]:
    """Start `meta-train`, or another program, in a separate process."""
    return subprocess.Popen(
        [sys.executable, *(["-c", program] if program else ["-m", "meta_train"]), *words(*argv)],
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        text=True,
    )


def digest(folder: Path) -> str:
    """The digest of the learned weights of a run."""
    return read(folder / "optimizer.safetensors").metadata["digest"]


def lines(folder: Path) -> list[dict[str, Any]]:
    """The metrics of a run, without the time that each update took."""
    text = (folder / "metrics.jsonl").read_text()
    return [{k: v for k, v in json.loads(line).items() if k != "seconds"} for line in text.splitlines()]


@contextlib.contextmanager
def at_update(update: int, act: Callable[[], object]) -> Iterator[None]:
    """Call `act` in a run of this process, once the line of an update is in its metrics file."""
    write = MetricsFile.write

    def write_and_act(self: MetricsFile, record: Mapping[str, Any]) -> None:
        write(self, record)
        if record["update"] == update:
            act()

    with mock.patch.object(MetricsFile, "write", write_and_act):
        yield
