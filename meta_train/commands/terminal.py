"""Standard error: a first line for a reader who waits, and a run that goes on when its terminal is closed."""

from __future__ import annotations

import io
import os
import sys


class LastingStream(io.TextIOWrapper):
    """A text stream that drops its output once its terminal or pipe is gone, instead of failing."""

    def write(self, text: str) -> int:
        """Write text, or drop it."""
        try:
            return super().write(text)
        except OSError:
            self._drop()
            return len(text)

    def flush(self) -> None:
        """Write what is buffered, or drop it."""
        try:
            super().flush()
        except OSError:
            self._drop()

    def _drop(self) -> None:
        # Not only here: what is still in the buffer is written when Python ends.
        null = os.open(os.devnull, os.O_WRONLY)
        os.dup2(null, self.fileno())
        os.close(null)


def outlast_the_terminal() -> None:
    """Let standard error be lost without an error: a message that nobody can read must not end a run."""
    if isinstance(sys.stderr, io.TextIOWrapper):
        encoding, errors = sys.stderr.encoding, sys.stderr.errors
        sys.stderr = LastingStream(sys.stderr.detach(), encoding, errors, line_buffering=True)


def say_in_terminal(sentence: str) -> None:
    """Tell somebody who looks at a terminal what takes time; files and pipes get only results."""
    if sys.stderr and sys.stderr.isatty():
        print(sentence, file=sys.stderr, flush=True)
