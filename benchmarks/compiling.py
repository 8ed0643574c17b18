"""CPU time of an update of a transformer, relative to optax.adam: compiling, running, and outside jit.

    python benchmarks/compiling.py
    python benchmarks/compiling.py --layers 2 --width 64 --optimizers mlp

A layer has 16 tensors of five shapes, and there are three more tensors. Twelve layers of width 256 have 195
tensors and 9.8 million parameters.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import NamedTuple

import jax
import jax.numpy as jnp
import optax
import tyro
from rich.box import SIMPLE_HEAD
from rich.console import Console
from rich.table import Table

import learned_opt
from learned_opt import Params

NETWORKS = ("mlp", "metz2019", "relative-mlp", "nadam-mlp", "muon-mlp", "small-fc", "celo2-style")
REPEATS = 3


@dataclass(frozen=True)
class Arguments:
    """CPU seconds of an update: compiling, running, and outside jit."""

    layers: int = 12
    """Number of layers of the transformer."""
    width: int = 256
    """Width of its layers."""
    optimizers: tuple[str, ...] = NETWORKS
    """Architectures."""


def transformer(layers: int, width: int) -> Params:
    """The shapes of a transformer's parameters."""

    def tensor(*shape: int) -> jax.ShapeDtypeStruct:
        return jax.ShapeDtypeStruct(shape, jnp.float32)

    layer = {
        **{part: {"w": tensor(width, width), "b": tensor(width)} for part in "qkvo"},
        **{norm: {"scale": tensor(width), "bias": tensor(width)} for norm in ("norm 1", "norm 2")},
        "up": {"w": tensor(width, 4 * width), "b": tensor(4 * width)},
        "down": {"w": tensor(4 * width, width), "b": tensor(width)},
    }
    outside = {"embedding": tensor(1000, width), "positions": tensor(128, width), "norm": tensor(width)}
    return outside | {f"layer {i}": layer for i in range(layers)}


class Cost(NamedTuple):
    """CPU seconds of an update."""

    compiling: float  # to trace, lower and compile it
    running: float  # compiled
    eager: float  # outside jit, when it is called for the second time and later


def measure(tx: optax.GradientTransformation, shapes: Params) -> Cost:
    """What an update costs; the shortest of three, except for compiling."""
    state = jax.eval_shape(tx.init, shapes)
    began = time.process_time()
    compiled = jax.jit(lambda *arguments: tx.update(*arguments)).lower(shapes, state, shapes).compile()
    compiling = time.process_time() - began
    params = jax.tree.map(lambda x: jax.random.normal(jax.random.key(x.size), x.shape), shapes)
    state = jax.jit(tx.init)(params)
    return Cost(
        compiling,
        _shortest(lambda: compiled(params, state, params)),
        _shortest(lambda: tx.update(params, state, params)),
    )


def _shortest(update: Callable[[], object]) -> float:
    jax.block_until_ready(update())
    seconds = []
    for _ in range(REPEATS):
        began = time.process_time()
        jax.block_until_ready(update())
        seconds.append(time.process_time() - began)
    return min(seconds)


def main() -> None:
    """Print the table."""
    arguments = tyro.cli(Arguments)
    shapes = transformer(arguments.layers, arguments.width)
    optimizers = {"optax.adam": optax.adam(1e-3)}
    for name in arguments.optimizers:
        optimizer = learned_opt.get_architecture(name)
        theta = optimizer.init_theta(jax.random.key(0), 1)
        optimizers[name] = learned_opt.as_optax(optimizer, theta)
    for tx in optimizers.values():
        measure(tx, jax.ShapeDtypeStruct((5,), jnp.float32))  # imports and one-time compilation
    leaves = jax.tree.leaves(shapes)
    title = f"an update of {len(leaves)} tensors, {sum(x.size for x in leaves):,} parameters: CPU seconds"
    table = Table(title=title, box=SIMPLE_HEAD)
    table.add_column("optimizer")
    for column in Cost._fields:
        table.add_column(column, justify="right")
        table.add_column("of Adam's", justify="right")
    costs = {name: measure(tx, shapes) for name, tx in optimizers.items()}
    for name, cost in costs.items():
        pairs = zip(cost, costs["optax.adam"], strict=True)
        table.add_row(name, *(cell for own, adams in pairs for cell in (f"{own:.3g}", f"{own / adams:.1f}")))
    Console(width=110).print(table)


if __name__ == "__main__":
    main()
