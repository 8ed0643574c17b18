"""Parsing a command line with tyro, whose messages then quote it as printable and short text."""

from __future__ import annotations

import contextlib
import io
from collections.abc import Sequence
from typing import Any

import tyro

from learned_opt._src.errors import printable


def parsed(kind: Any, program: str, argv: Sequence[str], **settings: Any) -> Any:
    """The arguments of a command, as an instance of `kind`.

    Args:
      kind: what to parse into, as for ``tyro.cli``.
      program: name of the command.
      argv: its command line.
      **settings: further arguments of ``tyro.cli``.

    Raises:
      SystemExit: (2) a flag is unknown or malformed; (0) help was requested.
    """
    shown = [printable(word) for word in argv]
    if shown != list(argv):
        try:
            with contextlib.redirect_stderr(io.StringIO()):
                return tyro.cli(kind, prog=program, args=argv, **settings)
        except SystemExit as ended:
            if not ended.code:
                raise
        # What may be shown fails in the same way.
        tyro.cli(kind, prog=program, args=shown, **settings)
        raise SystemExit(2)
    return tyro.cli(kind, prog=program, args=argv, **settings)
