"""The command `learned-opt`: look into an optimizer file, and compare it with tuned baselines."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Literal

import tyro
from rich.console import Console

import learned_opt
from learned_opt import UserError
from meta_train.cli import exit_code_of


@dataclass(frozen=True)
class Inspect:
    """Print what an optimizer file is."""

    file: tyro.conf.Positional[Path]
    """Optimizer file, or the folder of the run that made it."""
    debug: bool = False
    """Show the traceback of a failure."""


@dataclass(frozen=True)
class Evaluate:
    """Compare an optimizer with Adam, AdamW, SGD with momentum and RMSProp, each at its best rate."""

    file: tyro.conf.Positional[Path]
    """Optimizer file, or the folder of the run that made it."""
    task: str = "digits-mlp"
    """Inner task to train, with its default settings."""
    steps: int = 200
    """Training steps of each run."""
    seeds: int = 8
    """Seeds per optimizer and learning rate."""
    learning_rates: int = 15
    """Learning rates tried for each baseline, evenly spaced in the logarithm from 1e-4 to 1."""
    devices: Literal["auto"] | int = "auto"
    """Devices to spread the runs over."""
    data_dir: Path | None = None
    """Folder of TFDS data sets; by default TFDS_DATA_DIR, or else ~/tensorflow_datasets."""
    out: Path | None = None
    """Folder for summary.json and the pictures; without it only the table is printed."""
    debug: bool = False
    """Show the traceback of a failure."""


def inspect(arguments: Inspect) -> None:
    """Carry out `learned-opt inspect`."""
    console = Console()
    for name, value in learned_opt.describe(learned_opt.read(arguments.file)).items():
        console.print(f"[bold]{name:>16}[/]  {value}", highlight=False, soft_wrap=True)


def evaluate(arguments: Evaluate) -> None:
    """Carry out `learned-opt evaluate`."""
    for flag in ("steps", "seeds", "learning_rates"):
        if getattr(arguments, flag) < 1:
            raise UserError(
                f"--{flag.replace('_', '-')} is {getattr(arguments, flag)}; it must be at least 1"
            )
    artifact = learned_opt.read(arguments.file)
    # Imported late: reading a file and its errors need none of this.
    import jax

    from inner_tasks import Training, find_task
    from meta_train.comparison import (
        compare,
        learning_rates,
        print_comparison,
        write_comparison,
    )
    from meta_train.population import start_devices

    console = Console()
    devices = start_devices(None if arguments.devices == "auto" else arguments.devices)
    registration = find_task(arguments.task)
    task = registration.build(registration.settings)
    data = task.load(arguments.data_dir)
    optimizer = learned_opt.get_optimizer(artifact.architecture)
    comparison = compare(
        arguments.task,
        Training(data, task, optimizer, arguments.steps),
        artifact.theta,
        seeds=arguments.seeds,
        rates=learning_rates(arguments.learning_rates),
        devices=devices,
        chunk=1 if jax.default_backend() == "cpu" else arguments.seeds,
        before_each=lambda name: console.print(f"running {name}", style="dim", highlight=False),
    )
    print_comparison(comparison, console)
    if arguments.out:
        write_comparison(comparison, arguments.out, {})
        console.print(f"report: {arguments.out}", highlight=False)


def command(argv: Sequence[str]) -> None:
    """Carry out `learned-opt` with these arguments."""
    arguments = tyro.cli(
        Annotated[Inspect, tyro.conf.subcommand("inspect")]
        | Annotated[Evaluate, tyro.conf.subcommand("evaluate")],
        prog="learned-opt",
        args=argv,
    )
    inspect(arguments) if isinstance(arguments, Inspect) else evaluate(arguments)


def main() -> None:
    """Entry point of `learned-opt`."""
    sys.path.insert(0, "")  # as for `meta-train`: `--task module:name` is looked for here
    sys.exit(exit_code_of("learned-opt", command, sys.argv[1:]))
