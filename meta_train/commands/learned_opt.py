"""The command `learned-opt`: inspect optimizer files, and compare optimizers on tasks."""

from __future__ import annotations

import errno
import os
from collections.abc import Callable, Iterator, Sequence
from contextlib import nullcontext
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal, NamedTuple

import tyro
from rich.markup import escape

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
    from meta_train.report.evaluation import Contestant, Result


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
    a schedule, as in lion-cosine. With a schedule, only the direction of a learned optimizer is used, and its
    rate is tuned; with -no-num-steps, it is not told the number of steps."""
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
    resume: bool = False
    """Go on with the comparison in --out: runs that are finished are not repeated."""
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
    contestants, files = _contestants(arguments.optimizers)
    if arguments.resume and not arguments.out:
        raise UserError("--resume goes on with the comparison in --out; give that folder")
    if arguments.record:
        if not files:
            raise UserError("--record writes into optimizer files, but none of the optimizers is a file")
        for path in files.values():
            if not os.access(path.parent, os.W_OK):
                raise UserError(
                    f"--record cannot write into {path.parent}; give a copy of the optimizer file"
                )
    if arguments.out:
        _prepare(arguments.out, resume=arguments.resume)
    # Imported late: the checks above and reading a file need none of this.

    from inner_tasks import Training
    from meta_train.devices.choice import start_devices, units_at_once
    from meta_train.report.baselines import baseline
    from meta_train.report.comparison import Comparison, compare, learning_rates
    from meta_train.report.evaluation import check_host_memory, find_criterion, metrics_of
    from meta_train.report.files import result_file, write_so_far, write_suite
    from meta_train.report.kept import kept_or_made
    from meta_train.report.suite import print_overall
    from meta_train.report.tables import card, print_comparison
    from meta_train.run.interrupt import StopRequest
    from meta_train.run.lock import locked
    from meta_train.run.progress import LogClock, RunsLine

    console = new_console()
    devices = start_devices(arguments.devices)
    objectives = [_objective(each.file) for each in contestants.values() if each.file]
    tasks = list(_tasks(arguments.tasks, arguments.horizons))
    check_host_memory(max(horizon for _, _, horizon in tasks), arguments.seeds, arguments.learning_rates)

    def training(task: Task, horizon: int) -> Training:
        return Training(task.load(arguments.data_dir), task, baseline("adam", horizon).optimizer, horizon)

    # Load all data once now, so that missing data is reported at the start and not after an hour.
    metrics = [metrics_of(training(task, horizon)) for _, task, horizon in tasks]
    criterion = find_criterion(objectives, metrics)
    suite: list[Comparison] = []
    clock = LogClock()

    def obtain(number: int, task: str, steps: int, label: str, make: Callable[[], Result]) -> Result:
        if not arguments.out:
            return make()
        settings = {
            "task": task,
            "steps": steps,
            "optimizer": contestants[label].identity,
            "seeds": arguments.seeds,
            "learning rates": arguments.learning_rates,
            "ranked by": criterion.key,
        }
        return kept_or_made(
            result_file(arguments.out, number, label),
            settings,
            make,
            metrics=metrics[number - 1],
            resume=arguments.resume,
        )

    with nullcontext() if arguments.out is None else locked(arguments.out), StopRequest() as stop:
        advice = (
            "the same command with --resume goes on" if arguments.out else "nothing is saved without --out"
        )
        check = partial(stop.check, f"stopped; {advice}")
        for number, (name, task, horizon) in enumerate(tasks, 1):
            console.print(
                f"[bold]{number} of {len(tasks)}: {escape(name)}, {horizon} steps[/]", highlight=False
            )
            comparison = compare(
                name,
                training(task, horizon),
                {label: each.make(horizon) for label, each in contestants.items()},
                seeds=arguments.seeds,
                rates=learning_rates(arguments.learning_rates),
                criterion=criterion,
                devices=devices,
                chunk=units_at_once("auto", arguments.seeds * arguments.learning_rates),
                watch=partial(RunsLine, console, check, clock=clock),
                obtain=partial(obtain, number, name, horizon),
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


class _Named(NamedTuple):
    """An optimizer of the command line."""

    make: Callable[[int], Contestant]  # from the number of steps
    identity: str  # differs for different weights
    file: Path | None = None  # of a learned one


def _contestants(names: Sequence[str]) -> tuple[dict[str, _Named], dict[str, Path]]:
    """The optimizers by their label in tables, learned ones first; and the files of those used as they are.

    Raises:
      UserError: a name is neither a learned nor a hand-designed optimizer, or what is appended to it does not
        suit the optimizer.
    """
    from meta_train.report.baselines import BASELINES, DEFAULT_BASELINES, baseline, find_baseline

    learned: dict[str, _Named] = {}
    tuned: dict[str, _Named] = {}
    files: dict[str, Path] = {}
    names = list(dict.fromkeys((*names, *DEFAULT_BASELINES)))
    for name in names:
        file, ending = (None, "") if name in BASELINES else _file(name)
        if file is None:
            find_baseline(name)
            tuned[name] = _Named(partial(baseline, name), name)
            continue
        # A file with the usual name is labelled by its folder, which says more.
        short = (file.resolve().parent.name if file.name == FILE_NAME else file.stem) + ending
        label = name if short in (*names, *learned) else short
        learned[label] = _learned(label, file, ending)
        if not ending:
            files[label] = file
    return learned | tuned, files


# May be appended to the name of a learned optimizer, as a schedule may.
_NO_NUM_STEPS = "-no-num-steps"


def _file(name: str) -> tuple[Path | None, str]:
    """The file of a learned optimizer, None if there is none, and what is appended to its name."""
    from meta_train.report.baselines import SCHEDULES

    for ending in ("", *filter(None, SCHEDULES), _NO_NUM_STEPS):
        if name.endswith(ending) and (file := find_optimizer(name.removesuffix(ending))):
            return file, ending
    return None, ""


def _learned(label: str, file: Path, ending: str) -> _Named:
    """The optimizer of a file: as it is, without the number of steps, or its direction with a schedule.

    Raises:
      UserError: the file is not an intact optimizer file, or what is appended does not suit the optimizer.
    """
    from meta_train.report.baselines import SCHEDULES, Baseline, Rule, tuned
    from meta_train.report.evaluation import Contestant

    artifact = learned_opt.read(file)
    optimizer, theta = learned_opt.get_architecture(artifact.architecture), artifact.theta
    identity = artifact.metadata["digest"] + ending
    if ending == _NO_NUM_STEPS:
        if not optimizer.takes_num_steps:
            raise UserError(
                f"'{label}': this optimizer is never told the number of steps; leave {ending} out"
            )
        optimizer = optimizer._replace(takes_num_steps=False)
    elif ending:
        if optimizer.unit_rate is None:
            raise UserError(f"'{label}': this optimizer takes no learning rate; leave {ending} out")
        direction = Baseline(Rule(label, partial(learned_opt.as_optax, optimizer, theta)), SCHEDULES[ending])
        return _Named(partial(tuned, direction), identity, file)
    return _Named(lambda steps: Contestant(optimizer, theta), identity, file)


def _prepare(folder: Path, *, resume: bool) -> None:
    """Create the folder of the results, if it does not exist.

    Raises:
      UserError: it cannot be created, or files cannot be written into it; or it has the results of another
        comparison, although this one does not go on with them.
    """
    try:
        make_folder(folder)
        if not os.access(folder, os.W_OK):
            raise PermissionError(errno.EACCES, os.strerror(errno.EACCES))
    except OSError as error:
        raise UserError(f"--out is {folder}, which cannot be used ({error.strerror}); give another") from None
    from meta_train.report.files import RESULTS

    if not resume and (folder / RESULTS).exists():
        raise UserError(
            f"--out is {folder}, which has the results of a comparison; go on with it with --resume, or give "
            "another folder"
        )


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
