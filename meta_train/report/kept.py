"""Finished comparisons in files, so that a suite that was stopped can go on."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import safetensors
from safetensors.numpy import save as to_safetensors

from learned_opt import UserError
from learned_opt._src.files import write_whole
from meta_train.report.comparison import Comparison
from meta_train.report.costs import Cost
from meta_train.report.evaluation import Criterion, Result, Runs

# A file with more bytes than this is not read.
MAX_BYTES = 2**32

_KEY = "comparison"  # of the metadata, whose value is JSON
_LOSSES = "losses"  # the arrays are called OPTIMIZER/losses and OPTIMIZER/METRIC, with the optimizer's number


def keep(comparison: Comparison, settings: Mapping[str, Any], path: Path) -> None:
    """Write a finished comparison.

    Args:
      comparison: the comparison.
      settings: what it was made with, as JSON values.
      path: the file, in safetensors format; an existing one is replaced.

    Raises:
      OSError: the file could not be written.
    """
    arrays: dict[str, np.ndarray] = {}
    for number, result in enumerate(comparison.results.values()):
        arrays |= {
            f"{number}/{name}": np.ascontiguousarray(values)
            for name, values in ({_LOSSES: result.runs.losses} | result.runs.metrics).items()
        }
    facts = {
        "settings": settings,
        "results": {
            name: {"learning_rate": result.learning_rate, "tried": list(result.tried.items())}
            for name, result in comparison.results.items()
        },
        "costs": comparison.costs,
        "gradient_seconds": comparison.gradient_seconds,
    }
    write_whole(path, to_safetensors(arrays, metadata={_KEY: json.dumps(facts)}))


def kept(path: Path, settings: Mapping[str, Any], criterion: Criterion) -> Comparison | None:
    """Read a finished comparison; None if there is no such file.

    Args:
      path: the file.
      settings: what the comparison has to be made with, including the name of the task and the number of
        steps.
      criterion: what its optimizers are ranked by.

    Raises:
      UserError: it was made with other settings, or the file is damaged.
    """
    if not path.is_file():
        return None
    advice = "remove it to make it again, or give another --out"
    if path.stat().st_size > MAX_BYTES:
        raise UserError(f"{path} has more than {MAX_BYTES:,} bytes, so it is not read; {advice}")
    try:
        with safetensors.safe_open(path, framework="numpy") as file:
            facts = json.loads((file.metadata() or {})[_KEY])
            arrays = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
        differing = [name for name in settings if facts["settings"].get(name) != settings[name]]
        results = {}
        for number, (name, own) in enumerate(facts["results"].items()):
            prefix = f"{number}/"
            found = {key.removeprefix(prefix): x for key, x in arrays.items() if key.startswith(prefix)}
            runs = Runs(found.pop(_LOSSES), found)
            results[name] = Result(runs, own["learning_rate"], dict(map(tuple, own["tried"])))
        costs = {name: Cost(*cost) for name, cost in facts["costs"].items()}
        seconds = facts["gradient_seconds"]
    except (safetensors.SafetensorError, OSError, KeyError, TypeError, ValueError, AttributeError):
        raise UserError(f"{path} is not a finished comparison, or is damaged; {advice}") from None
    if differing:
        raise UserError(f"{path} is a comparison with other settings ({', '.join(differing)}); {advice}")
    return Comparison(settings["task"], settings["steps"], results, costs, seconds, criterion)
