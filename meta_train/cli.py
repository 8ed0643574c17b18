"""The command `meta-train`."""

from __future__ import annotations

import argparse
import os
import shutil
import sys
import traceback
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Annotated

import tyro
from rich.console import Console

from learned_opt import LearnedOptError, UserError
from meta_train import processes
from meta_train.config import Config, check_resume, config_flags, default_config, validate
from meta_train.run_folder import RunFolder


@dataclass(frozen=True)
class Arguments:
    """Meta-train a learned optimizer, and compare it with tuned hand-designed ones.

    Defaults are those of the task.
    """

    settings: Annotated[Config, tyro.conf.arg(name="")] = field(default_factory=Config)
    run_dir: Path | None = None
    """Folder of the run; by default the next free number under runs/."""
    resume: Path | None = None
    """Folder of a run to go on with, from its newest checkpoint."""
    config: Path | None = None
    """YAML file with settings, such as the config.yaml of a run; flags override it."""
    estimate: tyro.conf.FlagCreatePairsOff[bool] = False
    """Print the memory and the time that the run would need, and do not start it."""
    coordinator: str | None = None
    """For a run of many processes: HOST:PORT of process 0, or auto where JAX knows the cluster."""
    processes: int | None = None
    """Number of processes of the run."""
    process_id: int | None = None
    """Number of this process, from 0."""
    debug: bool = False
    """Show the traceback of a failure."""


def parse(argv: Sequence[str]) -> Arguments:
    """Arguments from flags, over the settings of a file or of a resumed run, over the task's defaults.

    What is looked up beforehand is looked up leniently (``nargs="?"``): tyro says what is malformed.

    Raises:
      UserError: a file cannot be read, or the task is unknown.
      SystemExit: (2) a flag is unknown or malformed; (0) help was asked for.
    """
    files = argparse.ArgumentParser(add_help=False, allow_abbrev=False)
    files.add_argument("--config", type=Path, nargs="?")
    files.add_argument("--resume", type=Path, nargs="?")
    named, _ = files.parse_known_args(argv)
    if named.config and named.resume:
        raise UserError("--config and --resume exclude each other: a run is resumed with its own settings")
    flags = list(argv)
    if named.resume:
        flags = config_flags(RunFolder.open(named.resume).config) + flags
    elif named.config:
        flags = config_flags(named.config) + flags
    task = argparse.ArgumentParser(add_help=False, allow_abbrev=False)
    task.add_argument("--task", nargs="?")
    name = task.parse_known_args(flags)[0].task or Config().task.name
    return tyro.cli(Arguments, prog="meta-train", args=flags, default=Arguments(default_config(name)))


def command(argv: Sequence[str]) -> None:
    """Carry out `meta-train` with these arguments."""
    arguments = parse(argv)
    config = arguments.settings
    validate(config)
    many = _processes(arguments)
    console = Console(stderr=True, soft_wrap=True)
    if arguments.resume:
        if arguments.run_dir:
            raise UserError("--run-dir and --resume exclude each other: a resumed run stays in its folder")
        folder = RunFolder.open(arguments.resume)
        saved = parse(config_flags(folder.config)).settings
        check_resume(saved, config)
        if folder.finished(config.updates):
            console.print(
                f"{folder.path} is finished: all {config.updates} updates are made and the report is "
                f"written ({folder.report}); a larger --updates goes on",
                highlight=False,
            )
            return
    # Imported late: parsing and its errors need no JAX program.
    from meta_train.estimate import estimate, memory, print_estimate, size
    from meta_train.run import meta_train, origin, prepare

    start_from = None if arguments.resume else origin(config)
    if many:
        processes.join(many)
    setup = prepare(config)
    console.quiet = not processes.leads()
    if arguments.estimate:
        print_estimate(estimate(config, setup), config, setup.devices, console)
        return
    needed = memory(setup)
    if not arguments.resume:
        folder = RunFolder(Path(processes.told(_new_folder(arguments, start_from))))
    estimator = config.estimator
    settings = [
        name.replace("_", " ") + ("" if value is True else f" {value}")
        for name, value in estimator.settings.items()
        if value is not False
    ]
    if len(setup.members) > 1:
        console.print(*setup.members, sep="\n", style="dim", highlight=False)
    console.print(
        f"{folder.path}: {config.task.name} (T {config.task.horizon}), "
        f"{estimator.name} ({', '.join(settings) or 'whole episodes'}), {estimator.particles} particles on "
        f"{setup.devices} devices, {size(sum(needed))} each",
        highlight=False,
    )
    with processes.losses_said():
        meta_train(config, setup, folder, console, resume=arguments.resume is not None)


def _new_folder(arguments: Arguments, start_from: Path | None) -> str:
    """Make the folder of a new run; of many processes, the first does."""
    if not processes.leads():
        return ""
    folder = RunFolder.create(arguments.run_dir, arguments.settings.task.name)
    if start_from:
        shutil.copyfile(start_from, folder.origin)
    return str(folder.path)


def _processes(arguments: Arguments) -> processes.Processes | None:
    """Where the processes of the run meet, if there are many."""
    if arguments.coordinator is None:
        if (arguments.processes, arguments.process_id) != (None, None):
            raise UserError("--processes and --process-id need --coordinator HOST:PORT, that of process 0")
        return None
    many = processes.Processes(arguments.coordinator, arguments.processes, arguments.process_id)
    processes.check(many)
    return many


def exit_code_of(program: str, command: Callable[[Sequence[str]], None], argv: Sequence[str]) -> int:
    """Run a command; a failure becomes one plain message and an exit code, with --debug a traceback.

    Returns:
      0; 2 for what the user can correct; 1 for a failure on the way; 128 + n for a signal n.
    """
    try:
        command(argv)
    except (Exception, KeyboardInterrupt) as error:
        if "--debug" in argv:
            traceback.print_exc()
        if isinstance(error, LearnedOptError):
            code, message = error.exit_code, str(error)
        elif isinstance(error, KeyboardInterrupt):
            code, message = 130, "stopped by Ctrl-C"
        elif isinstance(error, OSError):
            code, message = (
                1,
                f"the disk or a file failed: {error}; when that is mended, a run that has saved a checkpoint "
                "goes on with --resume",
            )
        elif "RESOURCE_EXHAUSTED" in str(error):
            code, message = (
                1,
                "the device has too little memory; try a smaller --chunk or fewer particles",
            )
        else:
            code = 1
            message = f"unexpected failure, {type(error).__name__}: {error} (--debug shows where)"
        print(f"{program}: {message}", file=sys.stderr)
        return code
    return 0


def main() -> None:
    """Entry point of `meta-train`."""
    # A console script does not look for modules where it is run; `--task module:name` should.
    sys.path.insert(0, "")
    argv = sys.argv[1:]
    run = partial(exit_code_of, "meta-train", command, argv)
    if processes.WATCHED in os.environ:
        sys.exit(processes.watched(run))
    many = any(word.partition("=")[0] == "--coordinator" for word in argv)
    sys.exit(processes.watch("meta-train", argv) if many else run())
