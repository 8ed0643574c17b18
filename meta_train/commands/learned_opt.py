"""The command `learned-opt`: inspect optimizer files, and compare optimizers on tasks."""

from __future__ import annotations

import errno
import os
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

import tyro

import learned_opt
from learned_opt import UserError
from learned_opt._src.files import make_folder
from learned_opt._src.optimizer_file import FILE_NAME
from learned_opt._src.pretrained import find_optimizer
from meta_train.commands.console import new_console, print_facts
from meta_train.commands.parsing import parsed
from meta_train.run.config import check_count

if TYPE_CHECKING:
    from inner_tasks import Task
    from meta_train.report.evaluation import Contestant


@dataclass(frozen=True)
class Inspect:
    """Describe an optimizer, and show how it compares with tuned baselines."""

    optimizer: tyro.conf.Positional[str]
    """An optimizer file, the folder of the run that made it, or the name of a pretrained optimizer."""
    architectures: tuple[str, ...] = ()
    """Your own architectures, as module:name, that the file may use; their modules are imported."""
    debug: bool = False
    """Show the traceback of a failure."""


@dataclass(frozen=True)
class Evaluate:
    """Compare optimizers on tasks with hand-designed ones at their best rates."""

    optimizers: tyro.conf.Positional[tuple[str, ...]]
    """Optimizer files, run folders, names of pretrained optimizers, or names of hand-designed ones, which are
    tuned: adam, adamw, nadam, sgdm, rmsprop, muon, or another optax optimizer; append -cosine or -linear for
    a schedule, as in lion-cosine."""
    architectures: tuple[str, ...] = ()
    """Your own architectures, as module:name, that the files may use; their modules are imported."""
    tasks: tuple[str, ...] = ("digits-mlp",)
    """Tasks to train, with their default settings; held-out is a suite of sixteen."""
    horizons: tuple[int, ...] = ()
    """Training steps per run; several lengths run one after another. The default is the task's horizon."""
    seeds: int = 4
    """Number of seeds that each optimizer is reported on; learning rates are tuned on as many others."""
    learning_rates: int = 15
    """Number of learning rates to try for each tuned optimizer, logarithmically spaced from 1e-4 to 1."""
    devices: Literal["auto"] | int = "auto"
    """Number of devices to spread the runs over."""
    data_dir: Path | None = None
    """Folder of TFDS data sets; by default TFDS_DATA_DIR, or else ~/tensorflow_datasets."""
    out: Path | None = None
    """Folder for evaluation.json, table.md and the pictures; without it only tables are printed."""
    record: bool = False
    """Write the results into the optimizer files as their model cards."""
    debug: bool = False
    """Show the traceback of a failure."""


def inspect(arguments: Inspect) -> None:
    """Run `learned-opt inspect`."""
    console = new_console()
    file = find_optimizer(arguments.optimizer) or Path(arguments.optimizer)
    described = learned_opt.describe(learned_opt.read(file))
    for title, facts in {
        "verified: the weights in the file show it": described.verified,
        "claimed: whoever wrote the file says so, and nothing was checked": described.claimed,
    }.items():
        console.print(title, style="dim", highlight=False, soft_wrap=True)
        print_facts(facts, console)


def evaluate(arguments: Evaluate) -> None:
    """Run `learned-opt evaluate`."""
    if not arguments.tasks:
        raise UserError("--tasks needs at least one task")
    for horizon in arguments.horizons:
        check_count("--horizons", horizon)
    check_count("--seeds", arguments.seeds)
    check_count("--learning-rates", arguments.learning_rates)
    learned, tuned, files = _contestants(arguments.optimizers)
    if arguments.record and not files:
        raise UserError("--record writes into optimizer files, but none of the optimizers is a file")
    if arguments.out:
        _prepare(arguments.out)
    # Imported late: the checks above and reading a file need none of this.

    from inner_tasks import Training
    from meta_train.devices.choice import start_devices, units_at_once
    from meta_train.report.baselines import baseline
    from meta_train.report.comparison import Comparison, compare, learning_rates
    from meta_train.report.evaluation import check_host_memory, find_criterion, metrics_of
    from meta_train.report.files import write_so_far, write_suite
    from meta_train.report.suite import print_overall
    from meta_train.report.tables import card, print_comparison
    from meta_train.run.interrupt import StopRequest
    from meta_train.run.progress import LogClock, RunsLine

    console = new_console()
    devices = start_devices(arguments.devices)
    objectives = [_objective(file) for file in files.values()]
    tasks = list(_tasks(arguments.tasks, arguments.horizons))
    check_host_memory(max(horizon for _, _, horizon in tasks), arguments.seeds, arguments.learning_rates)

    def training(task: Task, horizon: int) -> Training:
        return Training(task.load(arguments.data_dir), task, baseline("adam", horizon).optimizer, horizon)

    # Load all data once now, so that missing data is reported at the start and not after an hour.
    metrics = [metrics_of(training(task, horizon)) for _, task, horizon in tasks]
    criterion = find_criterion(objectives, metrics)
    suite: list[Comparison] = []
    clock = LogClock()
    with StopRequest() as stop:
        check = partial(stop.check, "stopped; finished comparisons are printed above, and saved in --out")
        for number, (name, task, horizon) in enumerate(tasks, 1):
            console.print(f"[bold]{number} of {len(tasks)}: {name}, {horizon} steps[/]", highlight=False)
            comparison = compare(
                name,
                training(task, horizon),
                learned | {name: baseline(name, horizon) for name in tuned},
                seeds=arguments.seeds,
                rates=learning_rates(arguments.learning_rates),
                criterion=criterion,
                devices=devices,
                chunk=units_at_once("auto", arguments.seeds * arguments.learning_rates),
                watch=partial(RunsLine, console, check, clock=clock),
            )
            suite.append(comparison)
            print_comparison(comparison, console)
            if arguments.out:
                write_so_far(suite, arguments.out)
    print_overall(suite, console)
    if arguments.out:
        write_suite(suite, arguments.out)
        console.print(f"report: {arguments.out}", highlight=False, markup=False, soft_wrap=True)
    if arguments.record:
        for name, path in files.items():
            artifact = learned_opt.read(path)
            cards = [card(comparison, name) for comparison in suite]
            meta_training = artifact.metadata.get("meta_training", {})
            learned_opt.save(path, artifact.architecture, artifact.theta, meta_training, cards)
            console.print(f"recorded in {path}", highlight=False, markup=False, soft_wrap=True)


def _contestants(
    names: Sequence[str],
) -> tuple[dict[str, Contestant], list[str], dict[str, Path]]:
    """The learned optimizers by name, the names of the optimizers to tune, and the files of the learned ones.

    Raises:
      UserError: a name is neither a learned nor a hand-designed optimizer.
    """
    from meta_train.report.baselines import BASELINES, DEFAULT_BASELINES, find_baseline
    from meta_train.report.evaluation import Contestant

    learned: dict[str, Contestant] = {}
    tuned: list[str] = []
    files: dict[str, Path] = {}
    names = list(dict.fromkeys((*names, *DEFAULT_BASELINES)))
    for name in names:
        file = None if name in BASELINES else find_optimizer(name)
        if file is None:
            find_baseline(name)
            tuned.append(name)
        else:
            artifact = learned_opt.read(file)
            # A file with the usual name is labelled by its folder, which says more.
            short = file.parent.name if file.name == FILE_NAME else file.stem
            label = name if short in (*names, *learned) else short
            learned[label] = Contestant(learned_opt.get_architecture(artifact.architecture), artifact.theta)
            files[label] = file
    return learned, tuned, files


def _prepare(folder: Path) -> None:
    """Create the folder of the results, if it does not exist.

    Raises:
      UserError: it cannot be created, or files cannot be written into it.
    """
    try:
        make_folder(folder)
        if not os.access(folder, os.W_OK):
            raise PermissionError(errno.EACCES, os.strerror(errno.EACCES))
    except OSError as error:
        raise UserError(f"--out is {folder}, which cannot be used ({error.strerror}); give another") from None


def _objective(file: Path) -> str:
    """The objective that an optimizer was meta-trained on; the training loss if its file does not say."""
    summary = learned_opt.read(file).metadata.get("meta_training")
    task = summary.get("task") if isinstance(summary, dict) else None
    objective = task.get("objective") if isinstance(task, dict) else None
    return objective if isinstance(objective, str) else "training-loss"


def _tasks(names: Sequence[str], horizons: Sequence[int]) -> Iterator[tuple[str, Task, int]]:
    """Name, task and number of steps of every training run to compare."""
    from inner_tasks import TaskDistribution, TaskFamily, find_task

    for name in names:
        registration = find_task(name)
        task = registration.build(registration.settings)
        tasks = task.members if isinstance(task, TaskDistribution) else {name: task}
        for label, each in tasks.items():
            each = each.example() if isinstance(each, TaskFamily) else each
            for horizon in horizons or (each.horizon,):
                yield label, each, horizon


def command(argv: Sequence[str]) -> None:
    """Run `learned-opt` with these arguments."""
    inspecting, evaluating = tyro.conf.subcommand("inspect"), tyro.conf.subcommand("evaluate")
    kind = Annotated[Inspect, inspecting] | Annotated[Evaluate, evaluating]
    arguments: Inspect | Evaluate = parsed(kind, "learned-opt", argv)
    for name in arguments.architectures:
        learned_opt.get_architecture(name)  # from now on, a file may name it too
    inspect(arguments) if isinstance(arguments, Inspect) else evaluate(arguments)
