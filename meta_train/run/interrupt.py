"""Stopping cleanly: the first Ctrl-C, SIGTERM or SIGHUP is a request; a second Ctrl-C kills at once."""

from __future__ import annotations

import signal
import threading
from types import FrameType

from learned_opt import LearnedOptError
from meta_train.devices.processes import global_max


class Interrupted(LearnedOptError):
    """The run stopped because a signal asked it to; the exit code is 128 + the signal's number."""

    def __init__(self, message: str, number: int) -> None:
        super().__init__(message)
        self.exit_code = 128 + number


def stop_signals() -> list[signal.Signals]:
    """The signals that ask a run to stop. SIGHUP is none if it is ignored: `nohup` asks for that."""
    hangup = [] if signal.getsignal(signal.SIGHUP) == signal.SIG_IGN else [signal.SIGHUP]
    return [signal.SIGINT, signal.SIGTERM, *hangup]


class StopRequest:
    """Records `stop_signals` while it is entered, so that the run can stop where it can save.

    Only the main thread can do this; in any other thread no signal is recorded.

    Args:
      kills: whether a second Ctrl-C ends the process; otherwise it is a ``KeyboardInterrupt``.

    Attributes:
      signal: number of the signal that asked this process to stop, or None.
    """

    def __init__(self, *, kills: bool = True) -> None:
        self.signal: int | None = None
        self._second = signal.SIG_DFL if kills else signal.default_int_handler

    def request(self) -> None:
        """Ask the run to stop, as SIGTERM does; any thread may call it."""
        self.signal = signal.SIGTERM

    def requested(self) -> int:
        """The signal that any process of the run received, or 0; all processes stop together."""
        return global_max(self.signal or 0)

    def check(self, message: str) -> None:
        """Raise ``Interrupted`` with this message if a stop was requested."""
        if number := self.requested():
            raise Interrupted(message, number)

    def _receive(self, number: int, frame: FrameType | None) -> None:
        del frame
        self.signal = number
        signal.signal(signal.SIGINT, self._second)

    def __enter__(self) -> StopRequest:
        main = threading.current_thread() is threading.main_thread()
        numbers = stop_signals() if main else []
        self._before = {n: signal.signal(n, self._receive) for n in numbers}
        return self

    def __exit__(self, *exception: object) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)
