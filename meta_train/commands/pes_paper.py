"""The command `pes-paper`: the experiments of the PES paper."""

from __future__ import annotations

import contextlib
import json
from collections.abc import Iterator, Sequence
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
from learned_opt._src.files import make_folder, write_whole
from meta_train.commands.console import new_console, print_facts
from meta_train.commands.parsing import parsed
from meta_train.devices.choice import start_devices, units_at_once
from meta_train.experiments import EXPERIMENTS
from meta_train.experiments.base import Experiment, NoOptions, Result, Settings, described, write_result
from meta_train.experiments.page import write_page
from meta_train.run.folder import new_folder
from meta_train.run.lock import LOCK, locked

RESULTS = Path("results")
SETTINGS = "settings.json"
GPU_CHUNK = 1024
ALL = "all"


Options = TypeVar("Options")


@dataclass(frozen=True)
class Arguments(Generic[Options]):
    """Run an experiment of the PES paper, and report whether its claim holds."""

    name: tyro.conf.Positional[str]
    """Name of an experiment; or all, to run every one and write a page of results; or list, to print them."""
    options: tyro.conf.OmitArgPrefixes[Options]
    """Options of this experiment only."""
    scale: Literal["small", "paper"] = "small"
    """small is a quick version; paper follows the protocol of the paper."""
    seeds: tuple[int, ...] | None = None
    """Seeds; results are reported for each. By default the experiment's own, three or more."""
    out: Path | None = None
    """Folder for result.json and the pictures; by default the next free number under results/."""
    resume: Path | None = None
    """Folder of a stopped experiment to continue; all other settings must be the same as before."""
    data_dir: Path | None = None
    """Folder of TFDS data sets; by default TFDS_DATA_DIR, or else ~/tensorflow_datasets."""
    debug: bool = False
    """Show the traceback of a failure."""


def parse(argv: Sequence[str]) -> Arguments[Any]:
    """Parse the flags, some of which depend on the experiment.

    Raises:
      SystemExit: (2) a flag is unknown or malformed; (0) help was requested.
    """
    name = _experiment_in(argv)
    options = EXPERIMENTS[name].options if name else NoOptions
    # The type of the options is known only at run time, which a type checker does not accept.
    arguments: Any = Arguments[options]  # type: ignore[valid-type]
    return parsed(arguments, "pes-paper", argv)


def _experiment_in(argv: Sequence[str]) -> str | None:
    """The name of an experiment in a command line that is not the value of a flag."""

    def has_value(word: str) -> bool:
        """Whether the next word is the value of this one."""
        return word.startswith("--") and word != "--debug" and "=" not in word

    named = (word for before, word in zip(["", *argv], argv, strict=False) if not has_value(before))
    return next((word for word in named if word in EXPERIMENTS), None)


def check(arguments: Arguments[Any]) -> None:
    """Check the arguments before anything is run.

    Raises:
      UserError: names the first invalid argument.
    """
    if arguments.name not in ("list", ALL, *EXPERIMENTS):
        raise UserError(f"unknown experiment '{arguments.name}'; {choices(arguments.name, EXPERIMENTS)}")
    if arguments.seeds is not None:
        for seed in arguments.seeds:
            if not 0 <= seed < 2**32:
                raise UserError(f"--seeds contains {seed}; a seed must lie between 0 and {2**32 - 1}")
        if not arguments.seeds or len(set(arguments.seeds)) < len(arguments.seeds):
            raise UserError(f"--seeds is {arguments.seeds}; give at least one seed, and no seed twice")
    if arguments.out and arguments.resume:
        raise UserError("--out names a new folder and --resume an existing one; give only one of them")


def chosen_settings(arguments: Arguments[Any]) -> Settings:
    """The settings from the arguments; with `all`, empty seeds stand for each experiment's own."""
    own = () if arguments.name == ALL else EXPERIMENTS[arguments.name].seeds
    return Settings(arguments.scale, arguments.seeds or own, arguments.options, data_dir=arguments.data_dir)


@contextlib.contextmanager
def prepare(arguments: Arguments[Any]) -> Iterator[Path]:
    """The folder of an experiment, locked: a new one, or that of the experiment to continue.

    Raises:
      UserError: the folder to continue holds no experiment with these settings, already has its result, or is
        used by another process.
    """
    settings = described(arguments.name, chosen_settings(arguments))
    if arguments.resume is None:
        numbered, advice = RESULTS / arguments.name, "choose another with --out"
        is_new = arguments.out is None or not arguments.out.exists()
        with new_folder(arguments.out, numbered, what="result folder", advice=advice) as folder:
            write_whole(folder / SETTINGS, json.dumps(settings) + "\n")
            try:
                yield folder
            except UserError:
                _remove_unused(folder, is_new)
                raise
        return
    try:
        saved = json.loads((arguments.resume / SETTINGS).read_text())
    except (OSError, ValueError, RecursionError):
        saved = None
    if not isinstance(saved, dict):
        raise UserError(f"--resume is {arguments.resume}, which is not the folder of an experiment")
    if saved != settings:
        raise UserError(
            f"the experiment in {arguments.resume} was started with {_said(saved)}, but this command has "
            f"{_said(settings)}; give the same settings, or start a new experiment without --resume"
        )
    if (arguments.resume / "result.json").exists():
        raise UserError(f"the experiment in {arguments.resume} is complete: it already has a result.json")
    with locked(arguments.resume):
        yield arguments.resume


def _remove_unused(folder: Path, is_new: bool) -> None:
    """Leave nothing of an experiment that was refused before it had written anything."""
    own = {SETTINGS, LOCK}
    if {path.name for path in folder.iterdir()} == own:
        for name in own:
            (folder / name).unlink()
        if is_new:
            folder.rmdir()


def _said(settings: dict[str, Any]) -> str:
    return ", ".join(f"{name} {value}" for name, value in settings.items())


def command(argv: Sequence[str]) -> None:
    """Run `pes-paper` with these arguments."""
    arguments = parse(argv)
    check(arguments)
    console = new_console()
    if arguments.name == "list":
        print_facts({experiment.name: experiment.summary for experiment in EXPERIMENTS.values()}, console)
        return
    chosen = EXPERIMENTS.values() if arguments.name == ALL else [EXPERIMENTS[arguments.name]]
    devices = start_devices("auto" if any(experiment.spread for experiment in chosen) else 1)
    with prepare(arguments) as folder:
        chunk = units_at_once("auto", GPU_CHUNK)
        settings = chosen_settings(arguments)._replace(folder=folder, devices=devices, chunk=chunk)
        if arguments.name == ALL:
            failed = _run_all(settings, console)
        else:
            failed = [] if _run(EXPERIMENTS[arguments.name], settings, console) else [arguments.name]
    if failed:
        raise LearnedOptError(f"the claim does not hold in this run for: {', '.join(failed)}")


def _run(experiment: Experiment, settings: Settings, console: Console) -> bool:
    """Run an experiment, write and print its result, and return whether its claim holds."""
    progress = new_console(stderr=True)
    progress.print(f"{experiment.name}, {settings.scale} scale: {experiment.source}", highlight=False)
    result = experiment.run(settings, progress)
    files = write_result(experiment, settings, result, settings.folder)
    print_result(result, console)
    console.print(f"written: {', '.join(map(str, files))}", highlight=False, markup=False)
    return result.verdict.holds


def _run_all(settings: Settings, console: Console) -> list[str]:
    """Run every experiment that has no result yet, each in its own folder; return those that do not hold."""
    results = {}
    for experiment in EXPERIMENTS.values():
        for options in experiment.variants or (experiment.options(),):
            values = [str(value) for value in vars(options).values()] if experiment.variants else []
            folder = settings.folder / "-".join([experiment.name, *values])
            if not (folder / "result.json").exists():
                make_folder(folder)
                seeds = settings.seeds or experiment.seeds
                _run(experiment, settings._replace(seeds=seeds, options=options, folder=folder), console)
            results[folder] = experiment
            page = write_page(results, settings.folder)
    console.print(f"written: {page}", highlight=False, markup=False, soft_wrap=True)
    holds = {
        path.name: json.loads((path / "result.json").read_text())["verdict"]["holds"] for path in results
    }
    return [name for name, it_holds in holds.items() if not it_holds]


def print_result(result: Result, console: Console) -> None:
    """Print a line for each method, single numbers with their expected values, and the verdict."""
    table = Table(box=SIMPLE_HEAD, pad_edge=False)
    table.add_column("method", no_wrap=True)
    for column in ("final loss: median", "lowest", "highest"):
        table.add_column(column, justify="right", no_wrap=True)
    for name, outcome in result.methods.items():
        losses = outcome.final_loss
        table.add_row(name, *(f"{value:.4g}" for value in (np.median(losses), losses.min(), losses.max())))
    console.print(table)
    for name, (measured, expected) in result.checks.items():
        console.print(f"{name}: {measured:.6g} (expected {expected:.6g})", highlight=False)
    console.print(f"[bold]{result.verdict.word}[/]: {result.verdict.text}", highlight=False)
