"""The console on which a command prints."""

from __future__ import annotations

import sys

from rich.console import Console


def new_console(*, stderr: bool = False) -> Console:
    """A console that breaks lines between words in a terminal, and leaves them whole in a file or a pipe."""
    # Not left to Rich, because a notebook sets FORCE_COLOR for its programs but reads from a pipe.
    terminal = (sys.stderr if stderr else sys.stdout).isatty()
    return Console(stderr=stderr, soft_wrap=not terminal, force_terminal=terminal)
