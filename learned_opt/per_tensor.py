"""A learned optimizer from a rule for a single tensor: what all per-parameter networks do alike."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any, Protocol

import jax
import jax.numpy as jnp
import optax

from learned_opt import features as ft
from learned_opt.base import LearnedOptimizer, Params, Theta
from learned_opt.per_parameter import apply_network

Accumulators = Any  # pytree of arrays: what a rule carries from step to step for one tensor
# Compute capability of the Hopper generation, the first that JAX's Mosaic GPU compiles kernels for.
KERNEL_CAPABILITY = 9.0


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class PerTensorState:
    """State of an optimizer that treats every tensor by itself."""

    count: jax.Array  # steps taken, int32 []
    accumulators: Params  # for each tensor, those of the rule
    # Which tensors lie on several devices. It is noticed at the start, and kept: inside ``jit`` an array
    # does not tell.
    spread: tuple[bool, ...] = dataclasses.field(metadata={"static": True})


class TensorRule(Protocol):
    """What an architecture does with one tensor."""

    def __call__(
        self,
        theta: Theta,
        gradient: jax.Array,
        param: jax.Array,
        accumulators: Accumulators,
        count: jax.Array,
        network: Callable[..., jax.Array],
    ) -> tuple[jax.Array, Accumulators]:
        """The update to be added, and the next accumulators; all arrays have the dtype of the state.

        Args:
          theta: weights of the optimizer.
          gradient: gradient of the tensor.
          param: the tensor.
          accumulators: as the rule left them at the step before.
          count: steps taken before this one.
          network: ``apply_network`` for this tensor.
        """
        ...


def per_tensor(
    init_theta: Callable[[jax.Array], Theta],
    init_tensor: Callable[[jax.Array], Accumulators],
    update_tensor: TensorRule,
    kernel: Callable[..., list[tuple[jax.Array, Accumulators]]] | None = None,
) -> LearnedOptimizer:
    """An optimizer that applies a rule to each tensor.

    The rule computes in float32, or in float64 for float64 parameters; its updates are rounded to the
    dtype of the parameters at the end. A tensor without entries passes it by.

    Args:
      init_theta: ``key -> theta``, the same weights for any number of tensors.
      init_tensor: ``param -> accumulators`` before the first step.
      update_tensor: the rule.
      kernel: the rule for all tensors at once, for a GPU and in float32: ``(theta, gradients, params,
        accumulators, count) -> [(update, accumulators), ...]``. Where it is differentiated, the rule is used.
    """

    def init(params: Params) -> PerTensorState:
        spread = tuple(_is_spread(param) for param in jax.tree.leaves(params))
        return PerTensorState(jnp.zeros((), jnp.int32), jax.tree.map(init_tensor, params), spread)

    def update(
        theta: Theta, gradients: Params, state: PerTensorState, params: Params
    ) -> tuple[Params, PerTensorState]:
        leaves, tree = jax.tree.flatten(params)
        dtypes = [ft.state_dtype(param) for param in leaves]

        def plain(theta: Theta, gradients: Any, params: Any, accumulators: Any, count: jax.Array) -> Any:
            def one(
                gradient: jax.Array, param: jax.Array, accumulators: Accumulators, spread: bool
            ) -> tuple[jax.Array, Accumulators]:
                if param.size == 0:
                    return param, accumulators
                cast = jax.tree.map(lambda w: w.astype(param.dtype), theta)
                network = partial(apply_network, spread=spread)
                return update_tensor(cast, gradient, param, accumulators, count, network)

            return list(map(one, gradients, params, accumulators, state.spread))

        run = plain
        if kernel and _fits_kernel(dtypes, state.spread):
            run = jax.custom_jvp(partial(jax.lax.platform_dependent, cuda=kernel, default=plain))
            run.defjvp(partial(jax.jvp, plain))
        gradients, params = (
            [x.astype(dtype) for x, dtype in zip(tree.flatten_up_to(xs), dtypes, strict=True)]
            for xs in (gradients, params)
        )
        # Left to itself a GPU would take tf32 for float32: only where JAX was told to.
        with jax.default_matmul_precision(jax.config.jax_default_matmul_precision or "float32"):
            outcomes = run(theta, gradients, params, tree.flatten_up_to(state.accumulators), state.count)
        updates = [update.astype(leaf.dtype) for (update, _), leaf in zip(outcomes, leaves, strict=True)]
        accumulators = tree.unflatten([accumulated for _, accumulated in outcomes])
        count = optax.safe_increment(state.count)
        return tree.unflatten(updates), PerTensorState(count, accumulators, state.spread)

    return LearnedOptimizer(init_theta=lambda key, blocks: init_theta(key), init=init, update=update)


def _fits_kernel(dtypes: Sequence[jnp.dtype], spread: Sequence[bool]) -> bool:
    """Whether there is a GPU that runs the kernel, and all tensors are whole and float32."""
    return _has_kernel_gpu() and not any(spread) and all(d == jnp.float32 for d in dtypes)


def _has_kernel_gpu() -> bool:
    """Whether the default device is an NVIDIA GPU that Mosaic GPU compiles for."""
    if jax.default_backend() != "gpu":
        return False
    capability = getattr(jax.local_devices()[0], "compute_capability", "")
    return capability.replace(".", "").isdigit() and float(capability) >= KERNEL_CAPABILITY


def _is_spread(param: jax.Array) -> bool:
    """Whether a tensor is known to lie on several devices, a part on each."""
    if isinstance(param, jax.core.Tracer):
        return any(axis is not None for axis in jax.typeof(param).sharding.spec)
    return not param.sharding.is_fully_replicated
