"""A watcher for each process of a run of many.

When one process is gone, JAX aborts the others without a word from Python. So each process is the child of
one that does nothing but watch it, and can say what happened.
"""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator, Sequence

import jax

from learned_opt import LearnedOptError

# Environment variable of a watched process.
WATCHED = "LEARNED_OPT_WATCHED"
# Exit code of a watched process that lost another.
LOST = 75
LOST_MESSAGE = (
    "another process of this run has ended or cannot be reached any more, and this one cannot go on without "
    "it. What was saved last is whole: start all processes again, as many as you like, with --resume and the "
    "folder of the run"
)


class LostError(LearnedOptError):
    """Another process of the run is gone."""

    exit_code = LOST


@contextlib.contextmanager
def lost_process_detected() -> Iterator[None]:
    """Raise a failure of the communication between processes as ``LostError``.

    Raises:
      LostError: JAX failed, and there are many processes.
    """
    try:
        yield
    except jax.errors.JaxRuntimeError as error:
        if jax.process_count() == 1 or "RESOURCE_EXHAUSTED" in str(error):
            raise
        raise LostError(str(error).splitlines()[0]) from error


def watched(command: Callable[[], int]) -> int:
    """Run the command of a watched process: it ends when its watcher does, and says when it lost another.

    Returns:
      The exit code.
    """
    del os.environ[WATCHED]
    threading.Thread(target=_end_with_watcher, daemon=True).start()
    code = command()
    if code == LOST:
        # An orderly end would wait for the process that is gone.
        sys.stderr.flush()
        os._exit(code)
    return code


def _end_with_watcher() -> None:
    os.read(sys.stdin.fileno(), 1)  # nothing is ever written to it
    os._exit(1)


def watch(program: str, argv: Sequence[str]) -> int:
    """Run the command again as a process that is watched, and say so if another of the run was lost.

    Args:
      program: name of the command, for the message.
      argv: its arguments.

    Returns:
      The exit code.
    """
    child = subprocess.Popen(
        # -P: what lies in the current folder is not to be taken for a package.
        [sys.executable, "-P", "-m", "meta_train", *argv],
        env=os.environ | {WATCHED: "1"},
        stdin=subprocess.PIPE,
        start_new_session=True,  # a terminal's Ctrl-C comes once, from here
    )
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, lambda number, frame: child.send_signal(number))
    code = child.wait()
    # Aborted by JAX, or by itself: what is killed on purpose gets no message of its own.
    if code in (LOST, -signal.SIGABRT):
        print(f"{program}: {LOST_MESSAGE}", file=sys.stderr)
        return 1
    return code if code >= 0 else 128 - code
