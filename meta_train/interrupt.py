"""Stopping in good order: the first Ctrl-C or SIGTERM is a request, the second Ctrl-C an order."""

from __future__ import annotations

import signal
from types import FrameType

from learned_opt import LearnedOptError


class Interrupted(LearnedOptError):
    """The run was asked to stop, and did; the exit code is 128 + the signal's number."""

    def __init__(self, message: str, number: int) -> None:
        super().__init__(message)
        self.exit_code = 128 + number


class StopRequest:
    """Notes SIGINT and SIGTERM while it is entered, for the run to stop where it can save.

    Attributes:
      signal: number of the signal received, or None.
    """

    def __init__(self) -> None:
        self.signal: int | None = None

    def check(self, message: str) -> None:
        """Raise ``Interrupted`` with this message if a stop was requested."""
        if self.signal is not None:
            raise Interrupted(message, self.signal)

    def _receive(self, number: int, frame: FrameType | None) -> None:
        del frame
        self.signal = number
        # From now on Ctrl-C kills at once, wherever the program is.
        signal.signal(signal.SIGINT, signal.SIG_DFL)

    def __enter__(self) -> StopRequest:
        self._before = {n: signal.signal(n, self._receive) for n in (signal.SIGINT, signal.SIGTERM)}
        return self

    def __exit__(self, *exception: object) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)
