"""The cache of compiled programs: damage to it costs one compilation and one sentence."""

from __future__ import annotations

import glob
import re
import sys
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax

from learned_opt._src.cache import cache_folder

# JAX's warning, with the name of the program, by which its files in the cache begin.
_WARNING = re.compile(r"Error (reading|writing) persistent compilation cache entry for '([\w.<>-]+)'")


def keep_programs() -> None:
    """Keep compiled programs, so that a resumed or similar run starts at once.

    They are kept in the user's cache folder, unless JAX was given another one. JAX itself never replaces a
    damaged entry, and warns of it in every run.
    """
    if not _folder():
        jax.config.update("jax_compilation_cache_dir", str(cache_folder() / "jax"))
        # JAX alone keeps those that took a second to compile; the small ones of a run take seconds together.
        jax.config.update("jax_persistent_cache_min_compile_time_secs", 0)
    if not isinstance(warnings.showwarning, _Show):
        warnings.showwarning = _Show(warnings.showwarning)


def _folder() -> str:
    # JAX 0.10 has no types for its settings.
    return getattr(jax.config, "jax_compilation_cache_dir", None) or ""


class _Show:
    """A ``warnings.showwarning`` that mends the cache, and says so once."""

    def __init__(self, others: Callable[..., None]) -> None:
        self._others = others  # shows all other warnings
        self._said: set[str] = set()

    def __call__(self, message: Any, *args: Any, **kwargs: Any) -> None:
        found = _WARNING.match(str(message))
        if not found:
            self._others(message, *args, **kwargs)
            return
        doing, program = found.groups()
        folder = _folder()
        if doing == "reading":
            sentence = "damaged entries are removed, and their programs compiled again"
            try:
                for path in Path(folder).glob(f"{glob.escape(program)}-*"):
                    path.unlink(missing_ok=True)
            except OSError as error:
                sentence = f"damaged entries cannot be removed ({error.strerror}), so each run compiles again"
        else:
            sentence = "new programs cannot be kept there, so the next run has to compile them again"
        if doing not in self._said:
            self._said.add(doing)
            print(f"cache of compiled programs, {folder}: {sentence}", file=sys.stderr)
