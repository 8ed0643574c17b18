"""Runs that are killed with SIGKILL at random moments and resumed: do they end with the same bits?

    python benchmarks/kills.py
    python benchmarks/kills.py --kinds pes tbptt --kills 20

A moment is uniformly random between the start of a process and the time that an uninterrupted run takes. A
killed process is started again, with --resume if its folder has a config.yaml, as in the cluster scripts of
the documentation, and is killed again. When a run ends before its moment, its optimizer file is compared, and
the next run begins.
"""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import tempfile
import time
from collections import Counter
from dataclasses import dataclass
from pathlib import Path
from random import Random

import tyro
from rich.box import SIMPLE_HEAD
from rich.console import Console
from rich.progress import Progress
from rich.table import Table

from inner_tasks import TaskDistribution, TaskSettings, find_task, register_task

SMALL = (
    "--task.horizon 20 --task.hidden 4 --task.objective training-loss --optimizer mlp "
    "--estimator.truncation 4 --estimator.particles 8 --outer.learning-rate 0.02 "
    "--updates 300 --checkpoint-every 10 --devices 2 --wandb disabled "
    "--evaluation.steps 5 --evaluation.seeds 1 --evaluation.learning-rates 2"
)
PERTURBED = "--task digits-mlp --estimator.sigma 0.03 --estimator"
KINDS = {
    "pes": f"{PERTURBED} pes",
    "nres": f"{PERTURBED} nres",
    "tbptt": "--task digits-mlp --estimator tbptt",
    "distribution": "--task kills:two_tasks --estimator pes --estimator.sigma 0.03",
}


@register_task("two_tasks", TaskSettings(hidden=(4,), batch_size=16, horizon=20))
def two_tasks(settings: TaskSettings) -> TaskDistribution:
    """A distribution that compiles quickly."""
    names = ("digits-mlp", "teacher-mlp")
    return TaskDistribution({name: find_task(name).build(settings) for name in names})


@dataclass(frozen=True)
class Arguments:
    """Kill runs at random moments, resume them, and compare their optimizer files."""

    kinds: tuple[str, ...] = tuple(KINDS)
    """Kinds of runs: pes, nres, tbptt or distribution."""
    kills: int = 50
    """Number of kills, of all kinds together."""
    seed: int = 0
    """Seed of the moments."""


def start(flags: str, folder: Path) -> subprocess.Popen[str]:
    """Start a run, or resume it if it can be resumed."""
    if (folder / "config.yaml").exists():
        # Code outside the package is named again.
        task = flags.split()[:2] if "kills:" in flags else []
        words = ["--resume", folder, *task]
    else:
        words = [*flags.split(), *SMALL.split(), "--run-dir", folder]
    return subprocess.Popen(
        [sys.executable, "-m", "meta_train", *map(str, words)],
        cwd=Path(__file__).parent,
        env=os.environ | {"PYTHONPATH": str(Path(__file__).parents[1]), "JAX_PLATFORMS": "cpu"},
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        text=True,
    )


def found_in(folder: Path) -> str:
    """How far a run had come when it was killed."""
    for name, stage in {
        "report/summary.json": "after the report",
        "optimizer.safetensors": "during the comparison",
        "metrics.jsonl": "during the updates",
        "checkpoints/0": "before the first update",
        "config.yaml": "before the first checkpoint",
    }.items():
        if (folder / name).exists():
            return stage
    return "before its configuration"


def kill_runs(flags: str, kills: int, random: Random, progress: Progress) -> tuple[Counter[str], list[str]]:
    """Kill runs of one kind.

    Returns:
      The number of kills by stage, and a line for every run that was lost or ended with other bits.
    """
    stages: Counter[str] = Counter()
    wrong: list[str] = []
    bar = progress.add_task(flags, total=kills)
    with tempfile.TemporaryDirectory() as scratch:
        whole = Path(scratch, "whole")
        for _ in range(2):  # the second finds all programs in the cache, as a resumed run does
            subprocess.run(["rm", "-rf", whole], check=True)
            began = time.perf_counter()
            _, said = start(flags, whole).communicate()
            seconds = time.perf_counter() - began
        expected = (whole / "optimizer.safetensors").read_bytes()
        run = 0
        while True:
            folder = Path(scratch, str(run))
            child = start(flags, folder)
            try:
                last = stages.total() == kills
                _, said = child.communicate(timeout=None if last else random.uniform(0, seconds))
            except subprocess.TimeoutExpired:
                child.send_signal(signal.SIGKILL)
                child.communicate()
                stages[found_in(folder)] += 1
                progress.advance(bar)
                continue
            if child.returncode != 0:
                wrong.append(said.splitlines()[-1])
            elif (folder / "optimizer.safetensors").read_bytes() != expected:
                wrong.append(f"run {run} ended with other bits")
            run += 1
            if last:
                return stages, wrong


def main() -> None:
    """Print the table."""
    arguments = tyro.cli(Arguments)
    random, console = Random(arguments.seed), Console(stderr=True)
    table = Table("kind", "kills", "by stage of the run", "lost, or with other bits", box=SIMPLE_HEAD)
    failures: list[str] = []
    with Progress(console=console) as progress:
        for number, kind in enumerate(arguments.kinds):
            kills = (arguments.kills + number) // len(arguments.kinds)
            stages, wrong = kill_runs(KINDS[kind], kills, random, progress)
            stage = "\n".join(f"{count} {name}" for name, count in stages.most_common())
            table.add_row(kind, str(stages.total()), stage, "\n".join(wrong) or "none")
            failures += wrong
    Console().print(table)
    sys.exit(bool(failures))


if __name__ == "__main__":
    main()
