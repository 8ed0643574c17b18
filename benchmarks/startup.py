"""Start-up time: imports, and compilation with a cold and a warm cache.

    python benchmarks/startup.py
    python benchmarks/startup.py --tasks digits-mlp --rounds 5

Every figure is the time of a new process from the start of Python to its end. The caches of compiled programs
are temporary folders: a cold one is empty, and a warm one was filled by the same command.
"""

from __future__ import annotations

import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path

import tyro
from rich.box import SIMPLE_HEAD
from rich.console import Console
from rich.progress import track
from rich.table import Table

FIRST_UPDATE = """
from common import configured, updating
from meta_train.run.setup import prepare
updating(prepare(configured({task!r})))()
"""


@dataclass(frozen=True)
class Arguments:
    """Start-up times in seconds."""

    tasks: tuple[str, ...] = ("digits-mlp", "mnist-mlp", "cifar10-mlp")
    """Tasks whose first update is timed."""
    rounds: int = 3
    """Number of times that everything is timed."""
    out: Path | None = None
    """JSON file for the results."""


def main() -> None:
    """Print the table."""
    arguments = tyro.cli(Arguments)
    programs = {
        "python alone": "pass",
        "import jax": "import jax",
        "import learned_opt": "import learned_opt",
        "import of the command line": "import meta_train.commands.meta_train",
        **{f"{task}: first update": FIRST_UPDATE.format(task=task) for task in arguments.tasks},
    }
    seconds: dict[str, dict[str, list[float]]] = {name: {"cold": [], "warm": []} for name in programs}
    for _ in track(range(arguments.rounds), console=Console(stderr=True), description="rounds"):
        for name, program in programs.items():
            with tempfile.TemporaryDirectory() as cache:
                for state in ("cold", "warm"):
                    seconds[name][state].append(_run(program, cache))
    table = Table(title="seconds from the start of Python to the end", box=SIMPLE_HEAD)
    for column in ("", "cold", "warm"):
        table.add_column(column, justify="right" if column else "left")
    for name, states in seconds.items():
        table.add_row(name, *(f"{statistics.median(taken):.2f}" for taken in states.values()))
    Console().print(table)
    if arguments.out:
        arguments.out.write_text(json.dumps(seconds, indent=2) + "\n")


def _run(program: str, cache: str) -> float:
    """Seconds that a new process takes to run the program."""
    environment = os.environ | {
        "LEARNED_OPT_CACHE": cache,
        "PYTHONPATH": os.pathsep.join([str(Path(__file__).parent), os.environ.get("PYTHONPATH", "")]),
    }
    began = time.perf_counter()
    subprocess.run([sys.executable, "-c", program], env=environment, check=True)
    return time.perf_counter() - began


if __name__ == "__main__":
    main()
