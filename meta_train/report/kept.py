"""The results of optimizers in files, so that a comparison that was stopped can go on."""

from __future__ import annotations

import json
from collections.abc import Callable, Collection, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import safetensors
from safetensors.numpy import save as to_safetensors

from learned_opt import UserError
from learned_opt._src.files import write_whole
from meta_train.report.evaluation import Result, Runs

# A file with more bytes than this is not read.
MAX_BYTES = 2**32

_KEY = "result"  # of the metadata, whose value is JSON
_LOSSES = "losses"  # the other arrays have the names of the task's metrics


def kept_or_made(
    path: Path,
    settings: Mapping[str, Any],
    make: Callable[[], Result],
    *,
    metrics: Collection[str],
    resume: bool,
) -> Result:
    """The result in a file, or otherwise a new one, which is written there.

    Args:
      path: the file, in safetensors format.
      settings: what the result has to be made with, as JSON values; among them ``seeds`` and ``steps``.
      make: makes it.
      metrics: the names of the task's metrics.
      resume: whether to take it from the file, if there is one; otherwise the file is replaced.

    Raises:
      UserError: the result in the file was made with other settings, or the file is damaged.
      OSError: the file could not be written.
    """
    if resume and path.is_file():
        return _read(path, settings, metrics)
    result = make()
    arrays = {_LOSSES: result.runs.losses, **result.runs.metrics}
    facts = {
        "settings": settings,
        "learning_rate": result.learning_rate,
        "tried": list(result.tried.items()),
    }
    content = to_safetensors(
        {name: np.ascontiguousarray(values) for name, values in arrays.items()},
        metadata={_KEY: json.dumps(facts)},
    )
    write_whole(path, content)
    return result


def _read(path: Path, settings: Mapping[str, Any], metrics: Collection[str]) -> Result:
    """The result in a file; it is refused if it was made with other settings."""
    advice = "remove it to make it again, or give another --out"
    if path.stat().st_size > MAX_BYTES:
        raise UserError(f"{path} has more than {MAX_BYTES:,} bytes, so it is not read; {advice}")
    try:
        with safetensors.safe_open(path, framework="numpy") as file:
            facts = json.loads((file.metadata() or {})[_KEY])
            arrays = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
        differing = [name for name in settings if facts["settings"].get(name) != settings[name]]
        runs = Runs(arrays.pop(_LOSSES), arrays)
        best = facts["learning_rate"]
        tried = {float(rate): float(loss) for rate, loss in facts["tried"]}
        result = Result(runs, None if best is None else float(best), tried)
    except (safetensors.SafetensorError, OSError, KeyError, TypeError, ValueError, AttributeError):
        raise UserError(f"{path} is not the result of an optimizer, or is damaged; {advice}") from None
    if differing:
        raise UserError(f"{path} was made with other settings ({', '.join(differing)}); {advice}")
    shapes = {name: (settings["seeds"],) for name in metrics}
    if runs.losses.shape != (settings["seeds"], settings["steps"]) or shapes != {
        name: values.shape for name, values in runs.metrics.items()
    }:
        raise UserError(f"{path} does not have the losses and metrics of this task; {advice}")
    return result
