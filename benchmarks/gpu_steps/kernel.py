"""The kernel compared with the plain formulation for several shapes, with particles and differentiated."""

from __future__ import annotations

import argparse
from collections.abc import Callable
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

import learned_opt
from gpu_steps.forms import KERNEL_OPTIMIZERS, form

SHAPES = {
    "number": (),
    "one": (1,),
    "vector": (1000,),
    "matrix": (3, 129),
    "rank 3": (5, 7, 33),
    "rank 4": (3, 3, 16, 32),
    "rank 5": (2, 3, 4, 5, 6),
    "empty": (0, 2),
}
LARGE = {"65,600": (1025, 64), "1e6": (1000, 1000), "odd": (257, 1021)}
BOUND = 1e-5


def run(emit: Callable[..., None], arguments: argparse.Namespace) -> None:
    """Emit the largest errors over all tensors; the step fails if an error exceeds its bound."""
    # In miniature the kernel is interpreted, and so slow to compile.
    cases = [("mlp", SHAPES, ())]
    if not arguments.miniature:
        few = {name: SHAPES[name] for name in ("vector", "matrix")}
        cases = [
            *((name, SHAPES | LARGE, ()) for name in KERNEL_OPTIMIZERS),
            ("mlp", few | LARGE, (3,)),
            ("mlp", few, (2, 2)),
        ]
    worst = 0.0
    for name, shapes, particles in cases:
        errors = _compared(name, shapes, particles)
        worst = max(worst, *errors.values())
        emit(optimizer=name, particles=particles, tensors=list(shapes), largest_error=max(errors.values()))
    slope = 0.0 if arguments.miniature else _derivative()
    emit(optimizer="mlp", error_of_derivative=slope)
    on_cpu = _on_cpu()
    emit(parameters_on_cpu=on_cpu)
    if max(worst, slope) > BOUND or on_cpu != "plain":
        raise SystemExit("the kernel is wrong")


def _network(shapes: dict[str, Any], leading: tuple[int, ...]) -> tuple[Any, Any]:
    """Parameters and gradients of very different sizes."""
    generator = np.random.default_rng(4)  # in NumPy, because a GPU would compile a program for each shape

    def normal(shape: tuple[int, ...]) -> np.ndarray:
        return generator.standard_normal((*leading, *shape)).astype(np.float32)

    params = {name: 0.3 * normal(shape) for name, shape in shapes.items()}
    gradients = {
        name: np.float32(10.0**-i) * (normal(shape) + np.float32(0.5))
        for i, (name, shape) in enumerate(shapes.items())
    }
    return jax.device_put((params, gradients))


def _theta(name: str, leading: tuple[int, ...]) -> Any:
    """Weights that differ strongly from those of a fresh optimizer."""
    optimizer = learned_opt.get_architecture(name)
    shapes = jax.eval_shape(lambda: optimizer.init_theta(jax.random.key(0), 1))
    generator = np.random.default_rng(7)
    return jax.tree.map(
        lambda x: jnp.asarray(0.3 * generator.standard_normal((*leading, *x.shape)), jnp.float32), shapes
    )


def _two_steps(name: str, theta: Any, params: Any, gradients: Any) -> Any:
    """Update and state of the second step, where the momenta are not multiples of the gradient."""
    optimizer = learned_opt.get_architecture(name)
    other = jax.tree.map(lambda g, p: 0.2 * g + p, gradients, params)
    _, state = optimizer.update(theta, other, optimizer.init(params), params)
    return optimizer.update(theta, gradients, state, params)


def _compared(name: str, shapes: dict[str, Any], leading: tuple[int, ...]) -> dict[str, float]:
    """Relative error of each output array: norm of the difference over the norm."""
    theta, (params, gradients) = _theta(name, leading), _network(shapes, leading)

    def outcome(kernel: bool) -> Any:
        function = partial(_two_steps, name)
        for _ in leading:
            function = jax.vmap(function)
        with form(kernel):
            return jax.device_get(jax.jit(lambda *args: function(*args))(theta, params, gradients))

    found, expected = outcome(True), outcome(False)
    return {
        jax.tree_util.keystr(path): _error(a, b)
        for (path, a), b in zip(
            jax.tree_util.tree_leaves_with_path(found), jax.tree.leaves(expected), strict=True
        )
        if b.size
    }


def _derivative() -> float:
    """Error of the derivative with respect to theta, for which the plain formulation must run."""
    theta, (params, gradients) = _theta("mlp", ()), _network({"vector": (1000,)}, ())

    def slope(kernel: bool) -> Any:
        def total(theta: Any) -> jax.Array:
            updates, _ = _two_steps("mlp", theta, params, gradients)
            return sum(jnp.sum(u**2) for u in jax.tree.leaves(updates))

        with form(kernel):
            return jax.device_get(jax.jit(jax.grad(lambda theta: total(theta)))(theta))

    pairs = zip(jax.tree.leaves(slope(True)), jax.tree.leaves(slope(False)), strict=True)
    return max(_error(a, b) for a, b in pairs)


def _on_cpu() -> str:
    """The form that runs for parameters on the CPU, in a process whose default device is a GPU."""
    cpu = jax.devices("cpu")[0]
    theta, params, gradients = jax.device_put((_theta("mlp", ()), *_network({"vector": (1000,)}, ())), cpu)
    optimizer = learned_opt.get_architecture("mlp")
    update = jax.jit(lambda *args: optimizer.update(*args))
    compiled = update.lower(theta, gradients, optimizer.init(params), params).compile()
    updates, _ = compiled(theta, gradients, optimizer.init(params), params)
    finite = bool(jnp.isfinite(updates["vector"]).all())
    return "plain" if finite and "mosaic" not in compiled.as_text() else "kernel"


def _error(a: np.ndarray, b: np.ndarray) -> float:
    a, b = np.asarray(a, np.float64), np.asarray(b, np.float64)
    error = float(np.linalg.norm(a - b) / max(np.linalg.norm(b), 1e-30))
    return error if np.isfinite(error) else float("inf")
