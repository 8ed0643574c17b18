"""Exception types."""

from __future__ import annotations

import difflib
from collections.abc import Collection


class LearnedOptError(Exception):
    """A failure at run time (disk, device, non-finite numbers); commands exit with 1."""

    exit_code = 1


class UserError(LearnedOptError, ValueError):
    """A mistake that the user can correct (arguments, data, folders, files); commands exit with 2."""

    exit_code = 2


def choices(name: str, known: Collection[str]) -> str:
    """The end of a message about an unknown name: the known names, and the closest one."""
    close = difflib.get_close_matches(name, known, n=1)
    hint = f"; did you mean '{close[0]}'?" if close else ""
    return f"available: {', '.join(known)}{hint}"
