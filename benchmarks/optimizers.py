"""Time and memory of an optimizer's own work in a step, compared with optax.adam.

    python benchmarks/optimizers.py
    python benchmarks/optimizers.py --parameters 10000 1000000 --optimizers mlp relative-mlp sgdm

The model is a perceptron with the given number of parameters, nearly all of them in square matrices; the time
of its gradient is not included. All optimizers take turns in one run, on one device; a CPU device of JAX uses
all cores for large operations.
"""

from __future__ import annotations

import json
import math
from dataclasses import dataclass
from pathlib import Path

import jax
import jax.numpy as jnp
import tyro
from rich.box import SIMPLE_HEAD
from rich.console import Console
from rich.table import Table

import learned_opt
from learned_opt._src.learned_optimizer import Params
from meta_train.report.baselines import baseline
from meta_train.report.costs import update_costs
from meta_train.report.evaluation import Contestant

LAYERS = 10


@dataclass(frozen=True)
class Arguments:
    """Time and memory of optimizers, compared with Adam's."""

    parameters: tuple[int, ...] = (10_000_000,)
    """Approximate numbers of parameters of the models."""
    optimizers: tuple[str, ...] = tuple(n for n in learned_opt.ARCHITECTURES if "per-block" not in n)
    """Architectures, freshly initialised; sgdm and adam are the ones with learned hyperparameters."""
    out: Path | None = None
    """JSON file for the results."""


def model(parameters: int) -> Params:
    """Ten square matrices and their biases."""
    width = round(math.sqrt(parameters / LAYERS))
    keys = jax.random.split(jax.random.key(0), LAYERS)
    return {
        f"layer {i}": {
            "kernel": jax.random.normal(key, (width, width)) / math.sqrt(width),
            "bias": jnp.zeros(width),
        }
        for i, key in enumerate(keys)
    }


def main() -> None:
    """Print the table."""
    arguments = tyro.cli(Arguments)
    contestants = {"optax.adam": baseline("adam", 1), "optax muon": baseline("muon", 1)}
    for name in dict.fromkeys(arguments.optimizers):
        optimizer = learned_opt.get_architecture(name)
        contestants[name] = Contestant(optimizer, optimizer.init_theta(jax.random.key(0), 2 * LAYERS))
    found = []
    for parameters in arguments.parameters:
        params = model(parameters)
        count = sum(x.size for x in jax.tree.leaves(params))
        costs = update_costs(params, contestants)
        adam = costs["optax.adam"]
        device = jax.devices()[0].device_kind
        table = Table(title=f"an update of {count:,} parameters on {device}", box=SIMPLE_HEAD)
        for column in ("optimizer", "ms", "of Adam's", "ns per parameter", "state, MB", "of Adam's"):
            table.add_column(column, justify="left" if column == "optimizer" else "right")
        for name, cost in costs.items():
            table.add_row(
                name,
                f"{cost.seconds * 1e3:.3g}",
                f"{cost.seconds / adam.seconds:.1f}",
                f"{cost.seconds / count * 1e9:.3g}",
                f"{cost.state_bytes / 1e6:.1f}",
                f"{cost.state_bytes / adam.state_bytes:.2f}",
            )
            found.append({"optimizer": name, "parameters": count, "device": device, **cost._asdict()})
        Console().print(table)
    if arguments.out:
        arguments.out.write_text(json.dumps(found, indent=2) + "\n")


if __name__ == "__main__":
    main()
