"""The command `pes-paper`: the experiments of the PES paper."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Generic, Literal, TypeVar

import numpy as np
import tyro
from rich.box import SIMPLE_HEAD
from rich.console import Console
from rich.table import Table

from learned_opt import LearnedOptError, UserError
from learned_opt._src.errors import choices
from learned_opt._src.files import write_whole
from meta_train.devices.choice import start_devices, units_at_once
from meta_train.experiments import EXPERIMENTS
from meta_train.experiments.base import Experiment, NoOptions, Result, Settings, described, write_result
from meta_train.experiments.page import write_page
from meta_train.run.folder import new_folder

RESULTS = Path("results")
SETTINGS = "settings.json"
GPU_CHUNK = 1024
ALL = "all"


Options = TypeVar("Options")


@dataclass(frozen=True)
class Arguments(Generic[Options]):
    """Run an experiment of the paper on Persistent Evolution Strategies, and say whether its claim holds."""

    name: tyro.conf.Positional[str]
    """Name of the experiment; all: every one, and a page of them; or list: print those that there are."""
    options: tyro.conf.OmitArgPrefixes[Options]
    """Of this experiment alone."""
    scale: Literal["small", "paper"] = "small"
    """Small is a quick version; paper is the protocol of the paper."""
    seeds: tuple[int, ...] | None = None
    """Seeds; all results are given for each. By default as many as the experiment asks for: three or more."""
    out: Path | None = None
    """Folder for result.json and the pictures; by default the next free number under results/."""
    resume: Path | None = None
    """Folder of an experiment that was stopped, to go on with; all else as it was."""
    data_dir: Path | None = None
    """Folder of TFDS data sets; by default TFDS_DATA_DIR, or else ~/tensorflow_datasets."""
    debug: bool = False
    """Show the traceback of a failure."""


def parse(argv: Sequence[str]) -> Arguments[Any]:
    """Arguments from flags; which there are depends on the experiment.

    Raises:
      SystemExit: (2) a flag is unknown or malformed; (0) help was asked for.
    """
    name = next((word for word in argv if word in EXPERIMENTS), None)
    options = EXPERIMENTS[name].options if name else NoOptions
    # The options of an experiment are known only here, and a type checker takes types that are written.
    arguments: Any = Arguments[options]  # type: ignore[valid-type]
    return tyro.cli(arguments, prog="pes-paper", args=argv)


def check(arguments: Arguments[Any]) -> None:
    """Check what can be known before anything is run.

    Raises:
      UserError: naming the first argument that cannot work.
    """
    if arguments.name not in ("list", ALL, *EXPERIMENTS):
        raise UserError(f"unknown experiment '{arguments.name}'; {choices(arguments.name, EXPERIMENTS)}")
    if arguments.seeds is not None:
        for seed in arguments.seeds:
            if not 0 <= seed < 2**32:
                raise UserError(f"--seeds has {seed}; a seed must lie between 0 and {2**32 - 1}")
        if not arguments.seeds or len(set(arguments.seeds)) < len(arguments.seeds):
            raise UserError(f"--seeds is {arguments.seeds}; give one seed or more, each once")
    if arguments.out and arguments.resume:
        raise UserError("--out names a new folder, and --resume an old one; give one of them")


def chosen_settings(arguments: Arguments[Any]) -> Settings:
    """What was chosen; of `all`, no seeds stand for each experiment's own."""
    own = () if arguments.name == ALL else EXPERIMENTS[arguments.name].seeds
    return Settings(arguments.scale, arguments.seeds or own, arguments.options, data_dir=arguments.data_dir)


def prepare(arguments: Arguments[Any]) -> Path:
    """The folder of an experiment: a new one, or that of the experiment to go on with.

    Raises:
      UserError: the folder to go on with is not that of such an experiment, or has its result.
    """
    settings = described(arguments.name, chosen_settings(arguments))
    if arguments.resume is None:
        folder = new_folder(
            arguments.out, RESULTS / arguments.name, what="result folder", advice="name another with --out"
        )
        write_whole(folder / SETTINGS, json.dumps(settings) + "\n")
        return folder
    try:
        saved = json.loads((arguments.resume / SETTINGS).read_text())
    except (OSError, ValueError):
        raise UserError(f"--resume is {arguments.resume}, which is no folder of an experiment") from None
    if saved != settings:
        raise UserError(
            f"--resume is {arguments.resume}, and there it was {_said(saved)}; now it is {_said(settings)}"
        )
    if (arguments.resume / "result.json").exists():
        raise UserError(f"the experiment in {arguments.resume} is complete: its result.json is there")
    return arguments.resume


def _said(settings: dict[str, Any]) -> str:
    return ", ".join(f"{name} {value}" for name, value in settings.items())


def command(argv: Sequence[str]) -> None:
    """Carry out `pes-paper` with these arguments."""
    arguments = parse(argv)
    check(arguments)
    console = Console(soft_wrap=True)
    if arguments.name == "list":
        for experiment in EXPERIMENTS.values():
            console.print(f"[bold]{experiment.name:>20}[/]  {experiment.summary}", highlight=False)
        return
    chosen = EXPERIMENTS.values() if arguments.name == ALL else [EXPERIMENTS[arguments.name]]
    devices = start_devices("auto" if any(experiment.spread for experiment in chosen) else 1)
    folder = prepare(arguments)
    chunk = units_at_once("auto", GPU_CHUNK)
    settings = chosen_settings(arguments)._replace(folder=folder, devices=devices, chunk=chunk)
    if arguments.name == ALL:
        failed = _run_all(settings, console)
    else:
        failed = [] if _run(EXPERIMENTS[arguments.name], settings, console) else [arguments.name]
    if failed:
        raise LearnedOptError(f"what {', '.join(failed)} is to show does not hold in this run")


def _run(experiment: Experiment, settings: Settings, console: Console) -> bool:
    """Run an experiment, write and print what it found; whether it holds."""
    progress = Console(stderr=True, soft_wrap=True)
    progress.print(f"{experiment.name}, {settings.scale} scale: {experiment.source}", highlight=False)
    result = experiment.run(settings, progress)
    files = write_result(experiment, settings, result, settings.folder)
    print_result(result, console)
    console.print(f"written: {', '.join(map(str, files))}", highlight=False)
    return result.verdict.holds


def _run_all(settings: Settings, console: Console) -> list[str]:
    """Run every experiment that has no result yet, each in a folder of its own; those that do not hold."""
    results = {}
    for experiment in EXPERIMENTS.values():
        for options in experiment.variants or (experiment.options(),):
            values = [str(value) for value in vars(options).values()] if experiment.variants else []
            folder = settings.folder / "-".join([experiment.name, *values])
            if not (folder / "result.json").exists():
                folder.mkdir(exist_ok=True)
                seeds = settings.seeds or experiment.seeds
                _run(experiment, settings._replace(seeds=seeds, options=options, folder=folder), console)
            results[folder] = experiment
            page = write_page(results, settings.folder)
    console.print(f"written: {page}", highlight=False)
    holds = {
        path.name: json.loads((path / "result.json").read_text())["verdict"]["holds"] for path in results
    }
    return [name for name, it_holds in holds.items() if not it_holds]


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
