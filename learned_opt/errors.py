"""What can go wrong, sorted by who can mend it."""

from __future__ import annotations


class LearnedOptError(Exception):
    """A failure on the way (disk, device, non-finite numbers); commands exit with 1."""

    exit_code = 1


class UserError(LearnedOptError, ValueError):
    """Something that the user can correct (arguments, data, folders, files); commands exit with 2."""

    exit_code = 2
