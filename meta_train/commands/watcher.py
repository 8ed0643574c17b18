"""A watcher for each process of a run of many processes.

When one process dies, JAX aborts the others before Python can print anything. So each process is the child
of a watcher, which does nothing else and can report what happened.
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
from meta_train.devices.processes import is_connecting
from meta_train.run.interrupt import stop_signals

# Environment variable that marks a watched process.
WATCHED = "LEARNED_OPT_WATCHED"
# Exit code of a watched process that lost another.
LOST = 75
LOST_MESSAGE = (
    "another process of this run has ended or cannot be reached any more, and this one cannot continue "
    "without it. The last checkpoint, if there is one, is intact: start all processes again, in any number, "
    "with --resume and the folder of the run"
)


class LostError(LearnedOptError):
    """Another process of the run is gone."""

    exit_code = LOST


@contextlib.contextmanager
def lost_process_detected() -> Iterator[None]:
    """Turn a failure of the communication between processes into ``LostError``.

    Raises:
      LostError: JAX failed in a run of many processes.
    """
    try:
        yield
    except jax.errors.JaxRuntimeError as error:
        if jax.process_count() == 1 or "RESOURCE_EXHAUSTED" in str(error):
            raise
        raise LostError(str(error).splitlines()[0]) from error


def watched(command: Callable[[], int]) -> int:
    """Run the command of a watched process, which ends when its watcher does.

    Returns:
      The exit code; ``LOST`` if another process was lost.
    """
    del os.environ[WATCHED]
    threading.Thread(target=_end_with_watcher, daemon=True).start()
    code = command()
    if code == LOST or is_connecting():
        # A normal exit would wait for the other processes.
        sys.stderr.flush()
        os._exit(code)
    return code


def _end_with_watcher() -> None:
    os.read(sys.stdin.fileno(), 1)  # nothing is ever written to it, so this returns when it is closed
    os._exit(1)


def watch(program: str, argv: Sequence[str]) -> int:
    """Run the command again as a watched child process, and report if another process of the run was lost.

    Args:
      program: name of the command, for the message.
      argv: its arguments.

    Returns:
      The exit code.
    """
    child = subprocess.Popen(
        # -P: files in the current folder must not be imported as packages.
        [sys.executable, "-P", "-m", "meta_train", *argv],
        env=os.environ | {WATCHED: "1"},
        stdin=subprocess.PIPE,
        start_new_session=True,  # so that Ctrl-C in a terminal reaches the child only once, from here
    )
    for number in stop_signals():
        signal.signal(number, lambda number, frame: child.send_signal(number))
    code = child.wait()
    # The child was aborted by JAX, or found another process lost. A deliberate kill needs no message.
    if code in (LOST, -signal.SIGABRT):
        print(f"{program}: {LOST_MESSAGE}", file=sys.stderr)
        return 1
    return code if code >= 0 else 128 - code
