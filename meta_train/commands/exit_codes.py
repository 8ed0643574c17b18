"""How a command ends: one message and an exit code.

Nothing here imports a package of the extra `train`, so a missing one is reported like any other failure.
"""

from __future__ import annotations

import errno
import sys
import traceback
from collections.abc import Callable, Sequence

from learned_opt import LearnedOptError
from learned_opt._src.errors import in_one_line


def exit_code_of(program: str, command: Callable[[Sequence[str]], None], argv: Sequence[str]) -> int:
    """Run a command; a failure becomes one plain message and an exit code, and with --debug a traceback.

    Returns:
      0 for success; 2 for an error that the user can correct; 1 for any other failure; 128 + n for signal n.
    """
    try:
        command(argv)
    except (Exception, KeyboardInterrupt) as error:
        if "--debug" in argv:
            traceback.print_exc()
        if isinstance(error, LearnedOptError):
            code, message = error.exit_code, str(error)
        elif isinstance(error, KeyboardInterrupt):
            code, message = 130, "stopped by Ctrl-C"
        elif isinstance(error, ModuleNotFoundError):
            code, message = (
                2,
                f"a package is missing ({error}); the commands need the extra 'train': "
                "pip install -e '.[train]'",
            )
        elif isinstance(error, OSError) and error.errno == errno.ENAMETOOLONG:
            code, message = 2, f"a path is too long: {error.filename}; give a shorter one"
        elif isinstance(error, OSError):
            code, message = (
                1,
                f"a file could not be read or written: {error}; fix that, and continue, a run with --resume",
            )
        elif "RESOURCE_EXHAUSTED" in str(error):
            code, message = (
                1,
                "the device ran out of memory; try a smaller --chunk or fewer particles",
            )
        else:
            code = 1
            message = f"unexpected failure, {type(error).__name__}: {error} (--debug shows where)"
        print(f"{program}: {in_one_line(message)}", file=sys.stderr)
        return code
    return 0
