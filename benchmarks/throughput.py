"""Particle-steps per second of meta-training, compared with the machine's limit and learned_optimization.

    python benchmarks/throughput.py
    python benchmarks/throughput.py --tasks mnist-mlp --rounds 20 --out throughput.json

A particle-step is one complete inner step of one perturbed particle, with gradient and optimizer. Everything
about a task takes turns in one run: PES of this package on all devices, with the operations of JAX and with
the native kernel (on a CPU, if there is a C++ compiler); TruncatedPES with MLPLOpt of
google/learned_optimization on the same work, on one device and on all (if that package is installed); and
large float32 matrix products, for the machine's limit. The second table shows where the time goes.
"""

from __future__ import annotations

import json
import shutil
import statistics
import time
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax
import peer
import tyro
from common import configured, interleaved, ratios, spread, updating
from rich.box import SIMPLE_HEAD
from rich.console import Console
from rich.table import Table

from inner_tasks.training import InnerState
from meta_train.devices.mapping import STRATEGY
from meta_train.run.setup import Setup, prepare

# Floating-point operations of the optimizer per parameter, and of the gradient per parameter and example.
OPTIMIZER_OPERATIONS, GRADIENT_OPERATIONS = 2_688, 6
WIDTH = 2_048  # of the matrices in the products
LOOP = 2_000_000  # parameters times steps in the loops that time a part
TURN_SECONDS = 0.5


class Work(NamedTuple):
    """The work of one estimate."""

    pairs: int
    truncation: int
    batch_size: int
    shape: tuple[int, ...]  # of an image
    hidden: tuple[int, ...]


WORK = {
    "digits-mlp": Work(8, 20, 64, (8, 8, 1), (32,)),
    "mnist-mlp": Work(4, 10, 64, (28, 28, 1), (32,)),
    "cifar10-mlp": Work(2, 5, 128, (32, 32, 3), (128, 128)),
}


@dataclass(frozen=True)
class Arguments:
    """Particle-steps per second, compared with the machine's limit and learned_optimization."""

    tasks: tuple[str, ...] = tuple(WORK)
    """Tasks to measure."""
    pairs: int | None = None
    """Number of antithetic pairs; the default suits a small CPU."""
    rounds: int = 7
    """Number of times that everything is timed."""
    out: Path | None = None
    """JSON file for the results."""


def main() -> None:
    """Print the tables."""
    arguments = tyro.cli(Arguments)
    progress = Console(stderr=True)
    rates = Table(title="particle-steps per second", box=SIMPLE_HEAD)
    for column in ("task", "particle-steps/s", "learned_optimization", "its pmap", "times its better"):
        rates.add_column(column, justify="left" if column == "task" else "right")
    rates.add_column("GFLOP/s", justify="right")
    rates.add_column("of products", justify="right")
    parts = Table(title="nanoseconds per parameter and particle-step, of one device", box=SIMPLE_HEAD)
    columns = (
        "task",
        "products at the limit",
        "rest of optimizer",
        "gradient",
        "minibatch",
        "population",
        "all",
    )
    for column in columns:
        parts.add_column(column, justify="left" if column == "task" else "right")
    found = []
    for name in arguments.tasks:
        for figures in measure(name, arguments, progress):
            found.append(figures)
            label = f"{name}, native" if figures["native"] else name
            better = [max(both) for both in zip(*figures["peer"].values(), strict=True)]
            rates.add_row(
                label,
                spread(figures["rate"]),
                *(spread(values, ",.3g") for values in figures["peer"].values()),
                *["not installed"] * (2 - len(figures["peer"])),
                spread(ratios(figures["rate"], better), ".2f") if better else "",
                spread(figures["flops"]),
                spread(figures["share"], ".0%"),
            )
            parts.add_row(label, *(f"{figures['parts'][column]:.1f}" for column in columns[1:]))
    console = Console(width=max(progress.width, 150))
    console.print(f"{jax.device_count()} devices: {jax.devices()[0].device_kind}", highlight=False)
    console.print(rates)
    console.print(parts)
    if arguments.out:
        arguments.out.write_text(json.dumps(found, indent=2) + "\n")


def measure(name: str, arguments: Arguments, progress: Console) -> list[dict[str, Any]]:
    """All results of one task: with the operations of JAX, and with the native kernel."""
    work = WORK[name]
    work = work._replace(pairs=arguments.pairs or work.pairs)
    # The optimizer and the objective of learned_optimization.
    settings = dict(optimizer="mlp", objective="training-loss", truncation=work.truncation)
    turns: dict[str, Callable[[], object]] = {}
    for native in (False, True):
        # Asked after the first form, whose setup has started JAX with a device for each core.
        if native and (jax.default_backend() != "cpu" or not shutil.which("c++")):
            break
        setup = prepare(configured(name, particles=2 * work.pairs, native=native, **settings))
        theta = setup.training.init_theta(jax.random.key(0))
        shapes = jax.eval_shape(setup.training.task.init, jax.random.key(0))
        count = sum(x.size for x in jax.tree.leaves(shapes))
        length = max(work.truncation, LOOP // count)
        of_form = {"population": updating(setup)} | _parts(setup, theta, length)
        for part, turn in of_form.items():
            turn()  # traced now, as a later form has other operations
            turns[f"{part}, native" if native else part] = turn
    turns["products"] = _products()
    steps = 2 * work.pairs * work.truncation
    peers = {}
    if peer.is_installed():
        own = dict(pairs=work.pairs, truncation=work.truncation)
        for devices in dict.fromkeys((1, setup.devices)):
            peers[f"{devices} devices"] = peer.make_estimate(
                *work[3:], work.batch_size, devices=devices, **own
            )
    repeats = {key: _repeats(turn) for key, turn in (turns | peers).items()}

    def repeated(turn: Callable[[], object], times: int) -> Callable[[], object]:
        return lambda: [turn() for _ in range(times)]

    longer = {key: repeated(turn, repeats[key]) for key, turn in (turns | peers).items()}
    taken = interleaved(longer, arguments.rounds, progress, name)
    once = {key: [s / repeats[key] for s in seconds] for key, seconds in taken.items()}
    operations = count * (OPTIMIZER_OPERATIONS + GRADIENT_OPERATIONS * work.batch_size)
    limit = [setup.devices * 2 * WIDTH**3 / s / 1e9 for s in once["products"]]
    products = OPTIMIZER_OPERATIONS * setup.devices / statistics.median(limit)

    def figures(form: str) -> dict[str, Any]:
        rate = [steps / s for s in once["population" + form]]
        flops = [r * operations / 1e9 for r in rate]
        parts = {
            part: statistics.median(once[part + form]) / length / count * 1e9
            for part in ("update", "gradient", "minibatch")
        }
        everything = statistics.median(once["population" + form]) * setup.devices / steps / count * 1e9
        return {
            "task": name,
            "native": bool(form),
            "parameters": count,
            **work._asdict(),
            "devices": setup.devices,
            "rate": rate,
            "peer": {key: [steps / s for s in once[key]] for key in peers},
            "flops": flops,
            "products": limit,
            "share": ratios(flops, limit),
            "parts": {
                "products at the limit": products,
                "rest of optimizer": parts["update"] - products,
                "gradient": parts["gradient"],
                "minibatch": parts["minibatch"],
                "population": everything - sum(parts.values()),
                "all": everything,
            },
        }

    return [figures(form) for form in ("", ", native") if "population" + form in turns]


def _repeats(turn: Callable[[], object]) -> int:
    """The number of calls that take about as long as a turn should."""
    turn()
    began = time.perf_counter()
    turn()
    return max(1, round(TURN_SECONDS / (time.perf_counter() - began)))


def _parts(setup: Setup, theta: Any, length: int) -> dict[str, Callable[[], object]]:
    """Functions that run `length` steps of one part of a particle's training on each device."""
    task, optimizer = setup.training.task, setup.training.optimizer
    data = STRATEGY.replicate(setup.training.data, setup.devices)

    def minibatch(data: Any, theta: Any, state: InnerState, key: jax.Array) -> tuple[InnerState, Any]:
        return state, jax.tree.map(lambda x: x.reshape(-1)[0], task.sample(data, key))

    def gradient(data: Any, theta: Any, state: InnerState, key: jax.Array) -> tuple[InnerState, Any]:
        # The same minibatch at every step, since drawing it is another part.
        loss, slope = jax.value_and_grad(task.loss)(state.params, task.sample(data, jax.random.key(0)))
        return state._replace(params=optax.apply_updates(state.params, optax.tree.scale(-1e-3, slope))), loss

    def update(data: Any, theta: Any, state: InnerState, key: jax.Array) -> tuple[InnerState, Any]:
        updates, own = optimizer.update(theta, state.params, state.optimizer, state.params)
        params = optax.apply_updates(state.params, updates)
        return state._replace(params=params, optimizer=own), jnp.zeros(())

    pmap = partial(jax.pmap, devices=jax.local_devices()[: setup.devices])
    keys = jax.random.split(jax.random.key(3), (setup.devices, length))
    states = pmap(setup.training.init)(keys[:, 0])

    def loop(part: Callable[..., tuple[InnerState, Any]]) -> Callable[[], object]:
        def run(data: Any, theta: Any, state: InnerState, keys: jax.Array) -> Any:
            return jax.lax.scan(lambda state, key: part(data, theta, state, key), state, keys)

        mapped = pmap(run, in_axes=(None, None, 0, 0))
        return lambda: jax.block_until_ready(mapped(data, theta, states, keys))

    return {part.__name__: loop(part) for part in (minibatch, gradient, update)}


def _products() -> Callable[[], None]:
    """A function that computes a product of two large matrices on each device."""
    count = jax.local_device_count()
    a = jax.random.normal(jax.random.key(0), (count, WIDTH, WIDTH))
    product = jax.pmap(lambda a: jnp.matmul(a, a, precision="float32"))
    return lambda: jax.block_until_ready(product(a))


if __name__ == "__main__":
    main()
