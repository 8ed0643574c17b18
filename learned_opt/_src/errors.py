"""Exception types."""

from __future__ import annotations

import difflib
import re
from collections.abc import Collection

# Characters of one quotation, and of a whole message.
QUOTE_LENGTH = 300
MESSAGE_LENGTH = 2000


def printable(value: object, length: int = QUOTE_LENGTH) -> str:
    """A value from a file or a command line as it is quoted in messages: printable, and short.

    Anybody may have written it. Terminal escapes, line ends and other characters that are not printable are
    shown as Python escapes, and the middle of a long text is left out.
    """
    text = str(value)
    if len(text) > length:
        text = f"{text[: length // 2]}...{text[-(length // 2) :]}"
    return "".join(c if c.isprintable() else ascii(c)[1:-1] for c in text)


def in_one_line(message: str) -> str:
    """A message as one printable line, in which no word is longer than a quotation may be."""
    line = " ".join(filter(None, map(str.strip, message.split("\n"))))
    return printable(re.sub(r"\S+", lambda word: printable(word[0]), line), MESSAGE_LENGTH)


class LearnedOptError(Exception):
    """A failure at run time (disk, device, non-finite numbers); commands exit with 1.

    Its message is one printable line, whatever it quotes.
    """

    exit_code = 1

    def __init__(self, message: str) -> None:
        super().__init__(in_one_line(message))


class UserError(LearnedOptError, ValueError):
    """A mistake that the user can correct (arguments, data, folders, files); commands exit with 2."""

    exit_code = 2


def choices(name: str, known: Collection[str]) -> str:
    """The end of a message about an unknown name: the known names, and the closest one."""
    close = difflib.get_close_matches(name, known, n=1)
    hint = f"; did you mean '{close[0]}'?" if close else ""
    return f"available: {', '.join(known)}{hint}"
