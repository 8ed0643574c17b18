"""The command ``meta-train``, as the steps call it."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

# A comparison that takes almost no time, and a tiny population.
BRIEF = ["--evaluation.seeds", 1, "--evaluation.learning-rates", 2, "--evaluation.steps", 5]
TINY = ["--estimator.particles", 2, "--estimator.truncation", 5, "--task.hidden", 4, "--task.batch-size", 4]


def meta_train(*words: object, platform: str | None = None) -> dict[str, Any]:
    """Run the command; its output goes to the log.

    If this process is asked to stop, it asks the command to stop, and waits while that saves.

    Returns:
      Its exit status, and the seconds that it took.
    """
    environment = os.environ | ({"JAX_PLATFORMS": platform} if platform else {})
    # Several processes share the device, so none may take more memory than it needs. A short run mostly
    # compiles, so even small programs are cached for the next one.
    environment["XLA_PYTHON_CLIENT_PREALLOCATE"] = "false"
    environment["JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS"] = "0"
    began = time.monotonic()
    process = subprocess.Popen([sys.executable, "-m", "meta_train", *map(str, words)], env=environment)
    signal.signal(signal.SIGTERM, lambda *_: process.send_signal(signal.SIGTERM))
    status = process.wait()
    signal.signal(signal.SIGTERM, signal.SIG_DFL)
    return {"status": status, "seconds": round(time.monotonic() - began, 1)}


def last_lines(path: Path, count: int) -> list[str]:
    """The last lines of a text file; none if it does not exist."""
    return path.read_text().splitlines()[-count:] if path.exists() else []
