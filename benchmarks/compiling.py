"""CPU time to compile an update of a transformer, compared with optax.adam.

    python benchmarks/compiling.py
    python benchmarks/compiling.py --layers 2 --width 64 --optimizers mlp

A layer has 16 tensors of five shapes, and there are three more tensors. Nothing is computed; the parameters
are only shapes.
"""

from __future__ import annotations

import time
from dataclasses import dataclass

import jax
import jax.numpy as jnp
import optax
import tyro
from rich.box import SIMPLE_HEAD
from rich.console import Console
from rich.table import Table

import learned_opt
from learned_opt import Params

NETWORKS = ("mlp", "metz2019", "relative-mlp", "small-fc", "celo2-style")


@dataclass(frozen=True)
class Arguments:
    """CPU seconds to trace, lower and compile an update."""

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


def cpu_seconds(tx: optax.GradientTransformation, params: Params) -> float:
    """CPU time that this process takes to compile an update."""
    state = jax.eval_shape(tx.init, params)
    began = time.process_time()
    jax.jit(lambda *arguments: tx.update(*arguments)).lower(params, state, params).compile()
    return time.process_time() - began


def main() -> None:
    """Print the table."""
    arguments = tyro.cli(Arguments)
    params = transformer(arguments.layers, arguments.width)
    optimizers = {"optax.adam": optax.adam(1e-3)}
    for name in arguments.optimizers:
        optimizer = learned_opt.get_architecture(name)
        theta = optimizer.init_theta(jax.random.key(0), 1)
        optimizers[name] = learned_opt.as_optax(optimizer, theta)
    for tx in optimizers.values():
        cpu_seconds(tx, jax.ShapeDtypeStruct((5,), jnp.float32))  # imports and one-time compilation
    table = Table(title=f"compiling an update of {len(jax.tree.leaves(params))} tensors", box=SIMPLE_HEAD)
    for column in ("optimizer", "CPU seconds", "of Adam's"):
        table.add_column(column, justify="left" if column == "optimizer" else "right")
    seconds = {name: cpu_seconds(tx, params) for name, tx in optimizers.items()}
    for name, own in seconds.items():
        table.add_row(name, f"{own:.2f}", f"{own / seconds['optax.adam']:.1f}")
    Console().print(table)


if __name__ == "__main__":
    main()
