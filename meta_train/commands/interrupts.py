"""Ctrl-C is not lost: Python drops an exception in a callback of the garbage collector, and JAX has one."""

from __future__ import annotations

import os
import signal
import sys
import threading


def keep_interrupts() -> None:
    """Send a Ctrl-C that Python has dropped again."""
    sys.unraisablehook = _send_again


def _send_again(dropped: sys.UnraisableHookArgs) -> None:
    if issubclass(dropped.exc_type, KeyboardInterrupt):
        # A little later, because this is still a part of the callback.
        threading.Timer(0.05, os.kill, (os.getpid(), signal.SIGINT)).start()
    else:
        sys.__unraisablehook__(dropped)
