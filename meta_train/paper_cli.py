"""The command `pes-paper`: the experiments of the PES paper."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import numpy as np
import tyro
from rich.box import SIMPLE_HEAD
from rich.console import Console
from rich.table import Table

from learned_opt import LearnedOptError, UserError
from learned_opt.errors import choices
from meta_train.cli import exit_code_of
from meta_train.experiments import EXPERIMENTS
from meta_train.experiments.base import Result, Settings, write_result
from meta_train.population import start_devices
from meta_train.run_folder import new_folder

RESULTS = Path("results")


@dataclass(frozen=True)
class Arguments:
    """Run an experiment of the paper on Persistent Evolution Strategies, and say whether its claim holds."""

    name: tyro.conf.Positional[str]
    """Name of the experiment, or list: print those that there are."""
    scale: Literal["small", "paper"] = "small"
    """Small is a quick version; paper is the protocol of the paper."""
    seeds: tuple[int, ...] = (0, 1, 2)
    """Seeds; all results are given for each."""
    out: Path | None = None
    """Folder for result.json and the pictures; by default the next free number under results/."""
    text: Path | None = None
    """Text file for the experiments on text; by default one that comes with Python."""
    debug: bool = False
    """Show the traceback of a failure."""


def parse(argv: Sequence[str]) -> Arguments:
    """Arguments from flags.

    Raises:
      SystemExit: (2) a flag is unknown or malformed; (0) help was asked for.
    """
    return tyro.cli(Arguments, prog="pes-paper", args=argv)


def check(arguments: Arguments) -> None:
    """Check what can be known before anything is run.

    Raises:
      UserError: naming the first argument that cannot work.
    """
    if arguments.name == "list":
        return
    if arguments.name not in EXPERIMENTS:
        raise UserError(f"unknown experiment '{arguments.name}'; {choices(arguments.name, EXPERIMENTS)}")
    for seed in arguments.seeds:
        if not 0 <= seed < 2**32:
            raise UserError(f"--seeds has {seed}; a seed must lie between 0 and {2**32 - 1}")
    if not arguments.seeds or len(set(arguments.seeds)) < len(arguments.seeds):
        raise UserError(f"--seeds is {arguments.seeds}; give one seed or more, each once")
    if arguments.text and not EXPERIMENTS[arguments.name].reads_text:
        raise UserError(f"--text is for experiments on text, and {arguments.name} is none")


def command(argv: Sequence[str]) -> None:
    """Carry out `pes-paper` with these arguments."""
    arguments = parse(argv)
    check(arguments)
    console = Console(soft_wrap=True)
    if arguments.name == "list":
        for experiment in EXPERIMENTS.values():
            console.print(f"[bold]{experiment.name:>20}[/]  {experiment.summary}", highlight=False)
        return
    experiment = EXPERIMENTS[arguments.name]
    start_devices(1)
    folder = new_folder(
        arguments.out, RESULTS / experiment.name, what="result folder", advice="name another with --out"
    )
    settings = Settings(arguments.scale, arguments.seeds, arguments.text)
    progress = Console(stderr=True, soft_wrap=True)
    progress.print(f"{experiment.name}, {settings.scale} scale: {experiment.source}", highlight=False)
    result = experiment.run(settings, progress)
    files = write_result(experiment, settings, result, folder)
    print_result(result, console)
    console.print(f"written: {', '.join(map(str, files))}", highlight=False)
    if not result.verdict.holds:
        raise LearnedOptError(f"what {experiment.name} is to show does not hold in this run")


def print_result(result: Result, console: Console) -> None:
    """A line for each method, single numbers beside what was expected of them, and the verdict."""
    table = Table(box=SIMPLE_HEAD, pad_edge=False)
    table.add_column("method", no_wrap=True)
    for column in ("final loss: median", "least", "greatest"):
        table.add_column(column, justify="right", no_wrap=True)
    for name, outcome in result.methods.items():
        losses = outcome.final_loss
        table.add_row(name, *(f"{value:.4g}" for value in (np.median(losses), losses.min(), losses.max())))
    console.print(table)
    for name, (measured, expected) in result.checks.items():
        console.print(f"{name}: {measured:.6g} (expected {expected:.6g})", highlight=False)
    verdict = "holds" if result.verdict.holds else "does not hold"
    console.print(f"[bold]{verdict}[/]: {result.verdict.text}", highlight=False)


def main() -> None:
    """Entry point of `pes-paper`."""
    sys.exit(exit_code_of("pes-paper", command, sys.argv[1:]))
