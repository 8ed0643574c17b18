"""Time of an optimizer's update: kernel and unfused, in several precisions, against its two bounds."""

from __future__ import annotations

import argparse
import statistics
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

import learned_opt
from gpu_steps.forms import KERNEL_OPTIMIZERS, form
from inner_tasks import find_task
from meta_train.report.baselines import baseline
from meta_train.report.costs import repeated_updates

# Of `mlp`, per parameter: moved by a step and by the pass over the mean squares; computed.
BYTES, OPERATIONS = 60 + 32, 2_688
ROUNDS = 5
LAYERS = 10


class Variant(NamedTuple):
    """An optimizer in a form and a precision."""

    optimizer: str
    form: str  # "kernel", "unfused", or "optax"
    precision: str = "float32"


FLOAT32 = (
    Variant("adam", "optax"),
    *(Variant(name, "kernel") for name in KERNEL_OPTIMIZERS),
    *(Variant(name, "unfused") for name in (*KERNEL_OPTIMIZERS, "nadam-mlp", "muon-mlp")),
)
PRECISIONS = tuple(
    Variant(name, "unfused", precision)
    for precision in ("TF32_TF32_F32_X3", "tensorfloat32")
    for name in ("mlp", "nadam-mlp")
)


def run(emit: Callable[..., None], arguments: argparse.Namespace) -> None:
    """One line for each size: picoseconds per parameter of each variant."""
    if arguments.miniature:
        _measure(emit, "10,000 parameters", _perceptron(10_000), (), 2, FLOAT32)
        return
    cifar10 = jax.eval_shape(find_task("cifar10-mlp").build(find_task("cifar10-mlp").settings).init, _key())
    _measure(emit, "64 particles of cifar10-mlp", cifar10, (64,), 20, FLOAT32 + PRECISIONS)
    for exponent, steps in ((8, 3), (4, 50), (6, 50), (7, 20), (5, 50)):
        _measure(emit, f"1e{exponent} parameters", _perceptron(10**exponent), (), steps, FLOAT32)


def _key() -> jax.Array:
    return jax.random.key(0)


def _perceptron(parameters: int) -> Any:
    """Shapes of ten square matrices and their biases."""
    width = round((parameters / LAYERS) ** 0.5)
    layer = {
        "kernel": jax.ShapeDtypeStruct((width, width), jnp.float32),
        "bias": jax.ShapeDtypeStruct((width,), jnp.float32),
    }
    return {f"layer {i}": layer for i in range(LAYERS)}


def _measure(
    emit: Callable[..., None],
    what: str,
    shapes: Any,
    leading: tuple[int, ...],
    steps: int,
    variants: tuple[Variant, ...],
) -> None:
    """Time all variants in turns, on the same parameters."""
    leaves, tree = jax.tree.flatten(shapes)
    generator = np.random.default_rng(0)  # a GPU would compile a program for each shape
    arrays = [0.05 * generator.standard_normal((*leading, *x.shape), np.float32) for x in leaves]
    params = jax.device_put(tree.unflatten(arrays))
    count = sum(x.size for x in jax.tree.leaves(params))
    lowered, failed = {}, {}
    for variant in variants:
        try:
            lowered[variant] = _lowered(variant, params, leading, len(leaves), steps)
        except Exception as error:  # one form that cannot be compiled is a result too
            failed[_name(variant)] = f"{type(error).__name__}: {str(error)[:200]}"
    with ThreadPoolExecutor() as pool:  # the compiler of a GPU runs without Python's lock
        turns = dict(zip(lowered, pool.map(lambda make: make(), lowered.values()), strict=True))
    seconds: dict[str, list[float]] = {}
    for number in range(ROUNDS + 1):
        for variant in list(turns):
            try:
                began = time.perf_counter()
                jax.block_until_ready(turns[variant]())
                taken = time.perf_counter() - began
            except Exception as error:  # out of memory, say
                failed[_name(variant)] = f"{type(error).__name__}: {str(error)[:200]}"
                del turns[variant]
                continue
            if number:
                seconds.setdefault(_name(variant), []).append(taken / steps / count * 1e12)
    emit(
        update_of=what,
        count=count,
        of_mlp_per_parameter={"bytes": BYTES, "operations": OPERATIONS},
        picoseconds_per_parameter={name: statistics.median(each) for name, each in seconds.items()},
        ranges={name: [min(each), max(each)] for name, each in seconds.items()},
        **({"failed": failed} if failed else {}),
    )


def _name(variant: Variant) -> str:
    return ", ".join(part for part in variant if part not in ("optax",))


def _lowered(
    variant: Variant, params: Any, leading: tuple[int, ...], tensors: int, steps: int
) -> Callable[[], Callable[[], object]]:
    """A function that compiles a loop of updates, and returns one that runs it."""
    if variant.form == "optax":
        optimizer, theta = baseline("adam", steps).optimizer, jnp.float32(1e-3)
    else:
        optimizer = learned_opt.get_architecture(variant.optimizer)
        theta = optimizer.init_theta(_key(), tensors)
    theta = jax.tree.map(lambda x: jnp.broadcast_to(x, (*leading, *jnp.shape(x))), theta)

    def loop(theta: Any, params: Any) -> Any:
        return repeated_updates(optimizer, theta, params, optimizer.init(params), steps)

    with form(variant.form == "kernel", variant.precision):
        mapped = jax.vmap(loop) if leading else loop
        lowered = jax.jit(mapped).lower(theta, params)

    def compiled() -> Callable[[], object]:
        program = lowered.compile()
        return lambda: program(theta, params)

    return compiled
