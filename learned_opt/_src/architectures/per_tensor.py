"""A learned optimizer from a rule for a single tensor: what all per-parameter networks do alike."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from typing import Any, Protocol

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax.sharding import AxisType

from learned_opt._src.architectures import features as ft
from learned_opt._src.architectures.per_parameter import BLOCK_SIZE, apply_network
from learned_opt._src.architectures.state import (
    Accumulators,
    LearnedState,
    by_field,
    by_tensor,
    initial_state,
)
from learned_opt._src.learned_optimizer import LearnedOptimizer, Params, Theta

# To stack tensors and take them apart again copies them and their state at every step, and needs memory for
# that. With a few of them, or large ones, this is worth more than what is saved in compiling, once.
FEW = 4  # tensors
LARGE = 2**18  # entries of a tensor
# Compute capability of the Hopper generation, the first that JAX's Mosaic GPU compiles kernels for.
KERNEL_CAPABILITY = 9.0
Tensor = tuple[jax.Array, jax.Array, Accumulators]  # gradient, parameter, accumulators
Outcome = tuple[jax.Array, Accumulators]  # update, next accumulators


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
    ) -> Outcome:
        """The update to be added, and the next accumulators; all arrays have the dtype of the state.

        Args:
          theta: weights of the optimizer.
          gradient: gradient of the tensor, zero where it is not finite.
          param: the tensor, zero where it is not finite.
          accumulators: as the rule left them at the step before.
          count: steps taken before this one.
          network: ``apply_network`` for this tensor.
        """
        ...


def per_tensor(
    init_theta: Callable[[jax.Array], Theta],
    initial: Accumulators,
    update_tensor: TensorRule,
    kernel: Callable[..., list[Outcome]] | None = None,
) -> LearnedOptimizer:
    """An optimizer that applies a rule to each tensor.

    The rule computes in float32, or in float64 for float64 parameters; its updates are rounded to the
    dtype of the parameters at the end. A tensor without entries passes it by. An entry that has had no
    gradient stays, and one that is not finite does not touch its neighbours. Tensors of one type are stacked,
    unless they are few or large, and the rule is compiled for them once.

    Args:
      init_theta: ``key -> theta``, the same weights for any number of tensors.
      initial: a NamedTuple of functions ``param -> array``, what each accumulator of a tensor starts as. One
        field is ``momenta``, averages ``[k, *shape]`` of the gradient, the slowest last.
      update_tensor: the rule.
      kernel: the rule for all tensors at once, for a GPU and in float32: ``(theta, gradients, params,
        accumulators, count) -> [(update, accumulators), ...]``. Where it is differentiated, the rule is used.
    """
    fields = jax.tree.structure(initial)

    def update(
        theta: Theta, gradients: Params, state: LearnedState, params: Params
    ) -> tuple[Params, LearnedState]:
        leaves, tree = jax.tree.flatten(params)
        dtypes = [ft.state_dtype(param) for param in leaves]
        gradients, params = (
            [x.astype(dtype) for x, dtype in zip(tree.flatten_up_to(xs), dtypes, strict=True)]
            for xs in (gradients, params)
        )
        spread = [_is_spread(g) or _is_spread(p) for g, p in zip(gradients, params, strict=True)]
        accumulators = by_tensor(fields, tree, state.accumulators)

        def plain(theta: Theta, gradients: Any, params: Any, accumulators: Any, count: jax.Array) -> Any:
            outcomes: list[Any] = list(zip(params, accumulators, strict=True))  # of tensors without entries
            for group in _equal(params, spread):
                network = partial(apply_network, spread=spread[group[0]])
                rule = partial(_update, update_tensor, theta, count, network)
                found = _each(rule, [(gradients[i], params[i], accumulators[i]) for i in group], count)
                for i, outcome in zip(group, found, strict=True):
                    outcomes[i] = outcome
            return outcomes

        run = plain
        if kernel and _fits_kernel(dtypes, spread):
            run = jax.custom_jvp(partial(jax.lax.platform_dependent, cuda=kernel, default=plain))
            run.defjvp(partial(jax.jvp, plain))
        # Left to itself a GPU would take tf32 for float32: only where JAX was told to.
        with jax.default_matmul_precision(jax.config.jax_default_matmul_precision or "float32"):
            outcomes = run(theta, gradients, params, accumulators, state.count)
        updates = [update.astype(leaf.dtype) for (update, _), leaf in zip(outcomes, leaves, strict=True)]
        accumulators = by_field(fields, tree, [own for _, own in outcomes])
        count = optax.safe_increment(state.count)
        return tree.unflatten(updates), LearnedState(count, accumulators)

    return LearnedOptimizer(
        init_theta=lambda key, blocks: init_theta(key), init=partial(initial_state, initial), update=update
    )


def _update(
    update_tensor: TensorRule,
    theta: Theta,
    count: jax.Array,
    network: Callable[..., jax.Array],
    gradient: jax.Array,
    param: jax.Array,
    accumulators: Accumulators,
) -> Outcome:
    """The rule for a tensor some of whose entries may have to stay, or not be finite."""
    theta = jax.tree.map(lambda w: w.astype(param.dtype), theta)
    step, accumulators = update_tensor(
        theta, ft.finite(gradient), ft.finite(param), accumulators, count, network
    )
    return ft.allowed(step, gradient, accumulators.momenta[-1]), accumulators


def _equal(params: Sequence[jax.Array], spread: Sequence[bool]) -> list[list[int]]:
    """Groups of tensors of one type, placement included; those without entries are in none."""
    groups: dict[Any, list[int]] = {}
    for i, param in enumerate(params):
        if param.size:
            # The type does not tell of all tensors how they are spread: stacked, they could have to move.
            groups.setdefault(i if spread[i] else jax.typeof(param), []).append(i)
    return list(groups.values())


def _each(rule: Callable[..., Outcome], tensors: Sequence[Tensor], count: jax.Array) -> list[Outcome]:
    """A rule on each of some tensors of one type: where they are many and small, traced and compiled once.

    They are taken one by one, or as many at a time as fill a block of the network.
    """
    if len(tensors) < FEW or tensors[0][1].size > LARGE:
        return [rule(*tensor) for tensor in tensors]
    # A CPU computes best what fits its caches, a GPU all of it at once.
    in_block = max(1, BLOCK_SIZE // tensors[0][1].size)
    together = len(tensors) if jax.default_backend() == "gpu" else min(len(tensors), in_block)
    # The last round is filled up with one tensor again and again; what comes of that is not looked at.
    filled = [*tensors, *[tensors[0]] * (-len(tensors) % together)]
    stacked = jax.tree.map(lambda *xs: jnp.stack(xs), *filled)
    batch_size = together if together > 1 else None
    outcomes = jax.lax.map(lambda tensor: rule(*tensor), stacked, batch_size=batch_size)
    # The compiler must not know these numbers: if it did, taking out each part would be its own program.
    places = jax.lax.cond(
        count >= 0,
        lambda: tuple(np.arange(len(tensors), dtype=np.int32)),
        lambda: tuple(np.zeros(len(tensors), np.int32)),
    )
    return [jax.tree.map(partial(_part, place=place), outcomes) for place in places]


def _part(x: jax.Array, place: jax.Array) -> jax.Array:
    """``x[place]``."""
    starts = (place, *np.zeros(x.ndim - 1, np.int32))
    part = jax.lax.dynamic_slice(x, starts, (1, *x.shape[1:]), allow_negative_indices=False)
    return jax.lax.squeeze(part, [0])


def _fits_kernel(dtypes: Sequence[jnp.dtype], spread: Sequence[bool]) -> bool:
    """Whether there is a GPU that runs the kernel, and all tensors are whole and float32."""
    return _has_kernel_gpu() and not any(spread) and all(d == jnp.float32 for d in dtypes)


def _has_kernel_gpu() -> bool:
    """Whether the default device is an NVIDIA GPU that Mosaic GPU compiles for."""
    if jax.default_backend() != "gpu":
        return False
    capability = getattr(jax.local_devices()[0], "compute_capability", "")
    return capability.replace(".", "").isdigit() and float(capability) >= KERNEL_CAPABILITY


def _is_spread(x: jax.Array) -> bool:
    """Whether a tensor lies on several devices, a part on each, as far as its type tells.

    Axes of a mesh that are "explicit" are in the type of a tensor, with what lies along them. Those that are
    "auto" are in it without that: there a tensor counts as spread, wherever it is.
    """
    sharding = jax.typeof(x).sharding
    if any(axis is not None for axis in sharding.spec):
        return True
    meshes = (sharding.mesh, jax.sharding.get_abstract_mesh())
    return any(
        size > 1 and kind == AxisType.Auto
        for mesh in meshes
        for size, kind in zip(mesh.axis_sizes, mesh.axis_types, strict=True)
    )
