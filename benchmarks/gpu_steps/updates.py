"""Time of an optimizer's update, as a kernel and unfused, in several precisions, and its two lower bounds."""

from __future__ import annotations

import argparse
import statistics
import threading
import time
from collections.abc import Callable, Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

import learned_opt
from gpu_steps.forms import KERNEL_OPTIMIZERS, form
from inner_tasks import find_task
from meta_train.estimators.window import AT_ONCE_ON_GPU
from meta_train.report.baselines import baseline
from meta_train.report.costs import repeated_updates

# For `mlp`, per parameter: bytes moved by a step and by the pass over the mean squares; operations.
BYTES, OPERATIONS = 60 + 32, 2_688
ROUNDS = 5
# The form is a setting of the whole process, so only one program is lowered at a time.
FORM = threading.Lock()
LAYERS = 10


class Variant(NamedTuple):
    """An optimizer in one form and one precision."""

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


class Case(NamedTuple):
    """Updates of parameters of one size."""

    what: str
    params: Any  # shapes
    leading: tuple[int, ...]  # leading axes, of particles
    steps: int  # updates in a turn
    variants: tuple[Variant, ...]


def run(emit: Callable[..., None], arguments: argparse.Namespace) -> None:
    """Emit one line for each size, with the picoseconds per parameter of each variant."""
    if arguments.miniature:
        cases = [Case("10,000 parameters", _perceptron(10_000), (), 2, FLOAT32)]
    else:
        cifar10 = jax.eval_shape(
            find_task("cifar10-mlp").build(find_task("cifar10-mlp").settings).init, _key()
        )
        cases = [Case("64 particles of cifar10-mlp", cifar10, (64,), 20, FLOAT32 + PRECISIONS)]
        for exponent, steps in ((8, 3), (4, 50), (6, 50)):
            cases.append(Case(f"1e{exponent} parameters", _perceptron(10**exponent), (), steps, FLOAT32))
    with ThreadPoolExecutor() as pool:  # the GPU compiler releases Python's lock
        compiling = [
            {variant: pool.submit(_compiled, case, variant) for variant in case.variants} for case in cases
        ]
        for case, programs in zip(cases, compiling, strict=True):
            emit(update_of=case.what, **_measured(case, programs))


def _key() -> jax.Array:
    return jax.random.key(0)


def _perceptron(parameters: int) -> Any:
    """The shapes of ten square matrices and their biases."""
    width = round((parameters / LAYERS) ** 0.5)
    layer = {
        "kernel": jax.ShapeDtypeStruct((width, width), jnp.float32),
        "bias": jax.ShapeDtypeStruct((width,), jnp.float32),
    }
    return {f"layer {i}": layer for i in range(LAYERS)}


def _measured(case: Case, programs: Mapping[Variant, Future[Any]]) -> dict[str, Any]:
    """Time all variants in turns, on the same parameters."""
    generator = np.random.default_rng(0)  # in NumPy, because a GPU would compile a program for each shape
    params = jax.tree.map(
        lambda x: 0.05 * generator.standard_normal((*case.leading, *x.shape), np.float32), case.params
    )
    params = jax.device_put(params)
    count = sum(x.size for x in jax.tree.leaves(params))
    turns, failed = {}, {}
    for variant, program in programs.items():
        try:
            turns[variant] = program.result()
        except Exception as error:  # that a form cannot be compiled is a result too
            failed[_name(variant)] = f"{type(error).__name__}: {str(error)[:200]}"
    seconds: dict[str, list[float]] = {}
    for number in range(ROUNDS + 1):
        for variant in list(turns):
            try:
                began = time.perf_counter()
                jax.block_until_ready(turns[variant](params))
                taken = time.perf_counter() - began
            except Exception as error:  # out of memory, for example
                failed[_name(variant)] = f"{type(error).__name__}: {str(error)[:200]}"
                del turns[variant]
                continue
            if number:
                seconds.setdefault(_name(variant), []).append(taken / case.steps / count * 1e12)
    return {
        "count": count,
        "of_mlp_per_parameter": {"bytes": BYTES, "operations": OPERATIONS},
        "picoseconds_per_parameter": {name: statistics.median(each) for name, each in seconds.items()},
        "ranges": {name: [min(each), max(each)] for name, each in seconds.items()},
        **({"failed": failed} if failed else {}),
    }


def _name(variant: Variant) -> str:
    return ", ".join(part for part in variant if part not in ("optax",))


def _compiled(case: Case, variant: Variant) -> Callable[[Any], object]:
    """A function of parameters that runs one turn of updates."""
    if variant.form == "optax":
        optimizer, theta = baseline("adam", case.steps).optimizer, jnp.float32(1e-3)
    else:
        optimizer = learned_opt.get_architecture(variant.optimizer)
        theta = optimizer.init_theta(_key(), len(jax.tree.leaves(case.params)))
    theta = jax.tree.map(lambda x: jnp.broadcast_to(x, (*case.leading, *jnp.shape(x))), theta)

    def loop(theta: Any, params: Any) -> Any:
        return repeated_updates(optimizer, theta, params, optimizer.init(params), case.steps, AT_ONCE_ON_GPU)

    params = jax.tree.map(lambda x: jax.ShapeDtypeStruct((*case.leading, *x.shape), x.dtype), case.params)
    with FORM, form(variant.form == "kernel", variant.precision):
        lowered = jax.jit(jax.vmap(loop) if case.leading else loop).lower(theta, params)
    program = lowered.compile()
    return lambda params: program(theta, params)
