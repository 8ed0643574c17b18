"""The command `meta-train`."""

from __future__ import annotations

import argparse
import contextlib
import shlex
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import tyro
from rich.filesize import decimal

from learned_opt import UserError, read
from learned_opt._src.errors import printable
from meta_train.commands import agent
from meta_train.commands.console import new_console
from meta_train.commands.parsing import parsed
from meta_train.commands.terminal import say_in_terminal
from meta_train.commands.watcher import lost_process_detected
from meta_train.devices import processes
from meta_train.run.config import (
    Config,
    by_flag,
    check_resume,
    code_names,
    config_flags,
    default_config,
    validate,
)
from meta_train.run.folder import RunFolder

if TYPE_CHECKING:
    from rich.console import Console

    from meta_train.run.setup import Setup


@dataclass(frozen=True)
class Arguments:
    """Meta-train a learned optimizer, and compare it with tuned hand-designed ones.

    The defaults depend on the task.
    """

    settings: Annotated[Config, tyro.conf.arg(name="")] = field(default_factory=Config)
    run_dir: Path | None = None
    """Folder of the run; by default the next free number under runs/."""
    resume: Path | None = None
    """Folder of a run to continue from its newest checkpoint."""
    config: Path | None = None
    """YAML file with settings, such as the config.yaml of a run; flags override it."""
    estimate: tyro.conf.FlagCreatePairsOff[bool] = False
    """Print the memory and time that the run would need, without starting it."""
    coordinator: str | None = None
    """For a run of many processes: HOST:PORT of process 0, or auto if JAX can detect the cluster."""
    processes: int | None = None
    """Number of processes in the run."""
    process_id: int | None = None
    """Index of this process, from 0."""
    debug: bool = False
    """Show the traceback of a failure."""


def parse(argv: Sequence[str]) -> Arguments:
    """Parse the flags; they override a file or a resumed run, which overrides the task's defaults.

    Raises:
      UserError: a setting is invalid, or may not change on a resume; or a file cannot be read, or names code
        that the command line does not.
      SystemExit: (2) a flag is unknown or malformed; (0) help was requested.
    """
    argv = agent.plain_flags(argv)
    named = _looked_up(argv, "--config", "--resume", *code_names(Config()))
    config, resume = named["--config"], named["--resume"]
    for flag in ("--config", "--resume"):
        if named[flag] == "":
            raise UserError(f"{flag} is empty; give a path")
    if config and resume:
        raise UserError("give --config or --resume, not both: a run is resumed with its own settings")
    file = RunFolder.open(Path(resume)).config if resume else Path(config) if config else None
    from_file = config_flags(file) if file else []
    arguments = _arguments([*from_file, *argv], named)
    validate(arguments.settings)
    if resume:
        if arguments.run_dir:
            raise UserError("give --run-dir or --resume, not both: a resumed run stays in its folder")
        check_resume(_arguments(from_file, named).settings, arguments.settings)
    elif not arguments.run_dir and (path := agent.run_folder(arguments.settings)):
        if not RunFolder(path).config.is_file():
            return replace(arguments, run_dir=path)
        # The run was preempted, and W&B hands it out again.
        saved = _arguments(config_flags(RunFolder(path).config), named).settings
        check_resume(saved, arguments.settings)
        return replace(arguments, resume=path)
    return arguments


def _looked_up(argv: Sequence[str], *flags: str) -> dict[str, str | None]:
    """Values of single flags as tyro reads them; None where one is not given, or is malformed."""
    parser = argparse.ArgumentParser(add_help=False, allow_abbrev=False)
    for flag in flags:
        parser.add_argument(*{flag, f"--{flag[2:].replace('-', '_')}"}, nargs="?", dest=flag)
    found = vars(parser.parse_known_args(argv)[0])
    return {flag: None if value == "None" else value for flag, value in found.items()}


def _arguments(flags: Sequence[str], named: Mapping[str, str | None]) -> Arguments:
    """Parse flags, with the defaults of their task and of the weights to start from.

    Args:
      flags: those of a file, followed by those of the command line.
      named: the values that the command line itself gives, by flag.

    Raises:
      UserError: the file names a ``module:name`` that the command line does not.
    """
    found = _looked_up(flags, "--task", "--optimizer", "--start-from")
    task = found["--task"] or Config().task.name
    _check_named({"--task": task}, named)  # to find its defaults, it is imported
    # A run that is resumed has its architecture in its settings, and does not need the weights any more.
    default = Arguments(default_config(task, found["--start-from"], found["--optimizer"]))
    arguments = parsed(Arguments, "meta-train", flags, default=default)
    _check_named(code_names(arguments.settings), named)
    return arguments


def _check_named(chosen: Mapping[str, str], named: Mapping[str, str | None]) -> None:
    """Check that the command line names all code to be imported: a file may come from anyone."""
    for flag, name in chosen.items():
        if ":" in name and named[flag] != name:
            raise UserError(
                "the configuration names code outside this package, which is imported only if the command "
                f"line names it too; if you trust it, add {flag} {shlex.quote(name)}"
            )


def command(argv: Sequence[str]) -> None:
    """Run `meta-train` with these arguments."""
    arguments = parse(argv)
    config = arguments.settings
    many = _processes(arguments)
    console = new_console(stderr=True)
    folder = RunFolder.open(arguments.resume) if arguments.resume else None
    # W&B did not receive the end of a run that it hands out again, so the report is made and sent again.
    handed_out = folder is not None and folder.path == agent.run_folder(config)
    if folder and folder.finished(config.updates) and not handed_out:
        console.print(
            f"{folder.path} is finished: all {config.updates} updates are done and the report is "
            f"written ({folder.report}); to continue, give a larger --updates",
            highlight=False,
            markup=False,
        )
        return
    if arguments.run_dir and not arguments.estimate:
        RunFolder.check_new(arguments.run_dir)
    # Imported late: parsing and its errors need none of this.
    from meta_train.run.estimate import estimate, memory, print_estimate
    from meta_train.run.run import meta_train
    from meta_train.run.setup import origin, prepare

    start_from = folder.origin if folder and folder.origin.exists() else origin(config)
    if many:
        processes.join(many, _agreed(arguments))
    say_in_terminal(
        f"meta-train: loading the data of {printable(config.task.name)}, then compiling an update"
    )
    with lost_process_detected(), contextlib.ExitStack() as held:
        setup = prepare(config, read(start_from).theta if config.learn and start_from else None)
        processes.connect(setup.devices)
        console.quiet = not processes.is_primary()
        if arguments.estimate:
            print_estimate(estimate(config, setup), config, setup.devices, console)
            return
        needed = memory(setup)
        locked = folder.used() if folder else RunFolder.create(arguments.run_dir, config)
        folder = RunFolder(Path(processes.by_primary(partial(_enter, held, locked))))
        _announce(config, setup, folder, needed, console)
        resume = arguments.resume is not None
        meta_train(config, setup, folder, console, resume=resume, start_from=start_from)


def _agreed(arguments: Arguments) -> dict[str, Any]:
    """By flag, what must be the same in every process of a run."""
    settings = by_flag(arguments.settings)
    for own in ("data-dir", "wandb"):  # a process finds its data where it is, and only process 0 uses W&B
        del settings[own]
    return settings | {"resume": arguments.resume is not None, "estimate": arguments.estimate}


def _enter(held: contextlib.ExitStack, folder: contextlib.AbstractContextManager[RunFolder]) -> str:
    """Hold the lock of a run folder, and return its path."""
    return str(held.enter_context(folder).path)


def _announce(
    config: Config, setup: Setup, folder: RunFolder, needed: Sequence[int], console: Console
) -> None:
    """Print the first lines of a run."""
    estimator = config.estimator
    settings = [
        name.replace("_", " ") + ("" if value is True else f" {value}")
        for name, value in estimator.settings.items()
        if value is not False
    ]
    if len(setup.trainings) > 1:
        console.print(*setup.trainings, sep="\n", style="dim", highlight=False)
    console.print(
        f"{folder.path}: {config.task.name} (T {config.task.horizon}), "
        f"{estimator.name} ({', '.join(settings) or 'whole episodes'}), {estimator.particles} particles on "
        f"{setup.devices} devices, {decimal(sum(needed))} each",
        highlight=False,
        markup=False,
    )


def _processes(arguments: Arguments) -> processes.Processes | None:
    """How the processes of the run connect; None for a single process."""
    if arguments.coordinator is None:
        if (arguments.processes, arguments.process_id) != (None, None):
            raise UserError("--processes and --process-id need --coordinator HOST:PORT of process 0")
        return None
    many = processes.Processes(arguments.coordinator, arguments.processes, arguments.process_id)
    processes.check(many)
    return many
