"""The console on which a command prints."""

from __future__ import annotations

import sys
import textwrap
from collections.abc import Mapping

from rich.console import Console
from rich.markup import escape

INDENT = 22


def new_console(*, stderr: bool = False) -> Console:
    """A console that breaks lines between words in a terminal, and leaves them whole in a file or a pipe."""
    # Not left to Rich, because a notebook sets FORCE_COLOR for its programs but reads from a pipe.
    stream = sys.stderr if stderr else sys.stdout
    terminal = stream is not None and stream.isatty()  # it is None if the caller has closed it
    return Console(stderr=stderr, soft_wrap=not terminal, force_terminal=terminal)


def print_facts(facts: Mapping[str, str], console: Console) -> None:
    """Print names with their values beside them; in a terminal, a long value goes on below its beginning."""
    for name, value in facts.items():
        if console.is_terminal:
            width = max(1, console.width - INDENT)
            lines = textwrap.wrap(value, width, break_long_words=False, break_on_hyphens=False)
            value = f"\n{' ' * INDENT}".join(lines)
        console.print(
            f"[bold]{escape(name):>{INDENT - 2}}[/]  {escape(value)}", highlight=False, soft_wrap=True
        )
