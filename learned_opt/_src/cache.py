"""The user's cache folder."""

from __future__ import annotations

import os
from pathlib import Path


def cache_folder() -> Path:
    """Return `LEARNED_OPT_CACHE`, `$XDG_CACHE_HOME/learned-opt` or `~/.cache/learned-opt`."""
    if own := os.environ.get("LEARNED_OPT_CACHE"):
        return Path(os.path.expanduser(own))  # unlike that of Path, it accepts a user without a home
    return Path(os.path.expanduser(os.environ.get("XDG_CACHE_HOME") or "~/.cache")) / "learned-opt"
