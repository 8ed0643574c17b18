"""Entry points of the installed commands.

Importing JAX takes seconds, so this module imports it only after a first line.
"""

from __future__ import annotations

import contextlib
import importlib
import os
import sys
from functools import partial
from typing import TYPE_CHECKING

from meta_train.commands.interrupts import keep_interrupts
from meta_train.commands.terminal import outlast_the_terminal, say_in_terminal

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence


def _command_of(module: str) -> Callable[[Sequence[str]], None]:
    """The command in a module, which is imported only when the command runs."""
    return lambda argv: importlib.import_module(module).command(argv)


@contextlib.contextmanager
def _loading(program: str) -> Iterator[None]:
    """Say that JAX is loaded, and end without a traceback if Ctrl-C comes meanwhile."""
    keep_interrupts()
    say_in_terminal(f"{program}: loading JAX")
    try:
        yield
    except KeyboardInterrupt:
        print(f"{program}: stopped by Ctrl-C", file=sys.stderr)
        sys.exit(130)


def meta_train() -> None:
    """Entry point of `meta-train`."""
    outlast_the_terminal()
    with _loading("meta-train"):
        from meta_train.commands import watcher
        from meta_train.commands.exit_codes import exit_code_of

    argv = sys.argv[1:]
    run = partial(exit_code_of, "meta-train", _command_of("meta_train.commands.meta_train"), argv)
    if watcher.WATCHED in os.environ:
        sys.exit(watcher.watched(run))
    many = any(word.partition("=")[0] == "--coordinator" for word in argv)
    sys.exit(watcher.watch("meta-train", argv) if many else run())


def learned_opt() -> None:
    """Entry point of `learned-opt`."""
    _run("learned-opt", "meta_train.commands.learned_opt")


def pes_paper() -> None:
    """Entry point of `pes-paper`."""
    _run("pes-paper", "meta_train.commands.pes_paper")


def _run(program: str, module: str) -> None:
    with _loading(program):
        from meta_train.commands.exit_codes import exit_code_of

    sys.exit(exit_code_of(program, _command_of(module), sys.argv[1:]))
