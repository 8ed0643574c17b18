"""What differs when the agent of a W&B sweep starts a run: the form of its flags, and the run folder."""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path
from urllib.parse import quote

from meta_train.run.config import Config, by_flag
from meta_train.run.folder import RUNS


def plain_flags(argv: Sequence[str]) -> list[str]:
    """The flags of an agent in the form that `meta-train` parses; other flags stay as they are.

    An agent writes ``--task.hidden=[64, 64]``, ``--learn=['direction']`` and ``--estimator.analytic=True``,
    or each as two words (``${args_no_equals}``). To a run that was preempted it passes the whole
    configuration, with W&B's own key ``_wandb``.

    >>> plain_flags(["--task.hidden=[64, 64]", "--estimator.analytic=True", "--_wandb", "{}"])
    ['--task.hidden', '64', '64', '--estimator.analytic']
    >>> plain_flags(["--learn=['direction', 'schedule']", "--native=False"])
    ['--learn', 'direction', 'schedule', '--no-native']
    """
    defaults = {f"--{name}": value for name, value in by_flag(Config()).items()}
    plain, rest = [], list(argv)
    while rest:
        word = rest.pop(0)
        flag, equals, value = word.partition("=")
        if not equals and rest:
            value = rest[0]
        if flag == "--_wandb":
            written = []
        elif isinstance(defaults.get(flag), bool) and value.lower() in ("true", "false"):
            section, dot, name = flag.removeprefix("--").rpartition(".")
            written = [flag if value.lower() == "true" else f"--{section}{dot}no-{name}"]
        elif isinstance(defaults.get(flag), list) and value.startswith("[") and value.endswith("]"):
            written = [flag, *(word.strip("'\"") for word in value[1:-1].replace(",", " ").split())]
        else:
            plain.append(word)
            continue
        plain += written
        if not equals:
            del rest[:1]
    return plain


def run_folder(config: Config) -> Path | None:
    """The folder of the W&B run that is asked for, named after its id; None if none is.

    The id of a preempted run that is handed out again is the same, so its folder is found.
    """
    run_id = os.environ.get("WANDB_RUN_ID")
    if not run_id or config.wandb == "disabled":
        return None
    return RUNS / f"{config.task.name.rpartition(':')[2]}-{quote(run_id, safe='')}"
