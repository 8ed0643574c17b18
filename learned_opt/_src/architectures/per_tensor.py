"""A learned optimizer from a rule for tensors: the common part of all per-parameter networks."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from types import MappingProxyType
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax
from jax.sharding import AxisType

from learned_opt._src import native
from learned_opt._src.architectures import features as ft
from learned_opt._src.architectures.state import (
    Accumulators,
    LearnedState,
    by_field,
    by_tensor,
    initial_state,
)
from learned_opt._src.architectures.tensors import Entries, Packed, Tensors, Whole, unstacked
from learned_opt._src.learned_optimizer import LearnedOptimizer, Params, Theta

# Packing copies tensors at every step and needs memory for the copies. For a few tensors with more than SMALL
# entries, or for tensors with more than LARGE, that costs more than it saves in compile time.
SMALL = 2**14  # entries of a tensor
FEW = 4  # tensors
LARGE = 2**18
# Compute capability of the Hopper generation, the first that JAX's Mosaic GPU compiles kernels for.
KERNEL_CAPABILITY = 9.0
Outcome = tuple[jax.Array, Accumulators]  # update, next accumulators
# ``(theta, gradients, params, accumulators, count) -> [(update, accumulators), ...]``
Kernel = Callable[..., list[Outcome]]


class Rule(NamedTuple):
    """An architecture's rule for tensors; all arrays have the dtype of the state.

    Attributes:
      initial: a NamedTuple of functions ``param -> array``, the initial accumulators of a tensor. One field
        is ``momenta``, averages ``[k, *shape]`` of the gradient, the slowest last. A field ``numbers``,
        ``[k]``, is for numbers that describe the whole tensor; `accumulate` does not change it.
      accumulate: ``(theta, gradient, accumulators) -> accumulators``, from those of the previous step to
        those of this one, for one tensor in its own shape.
      step: ``(theta, tensors, clock) -> [...]``, the update of each entry of some tensors, to be added. Their
        gradients and values are zero where they are not finite. If there are numbers, it returns a
        pair of that and of the next numbers, ``[k, T]``.
      shaped: ``(theta, gradient, momenta, factored) -> (factored, arrays [k, *shape])``, for a rule that uses
        the rows and columns of a tensor: its next factored moments, and arrays for `step`. If the rule has
        factored moments, its accumulators have a field ``factored``, which `accumulate` does not change;
        otherwise `factored` is ().
      takes_num_steps: whether `step` uses the number of steps of the run.
    """

    initial: Accumulators
    accumulate: Callable[[Theta, jax.Array, Accumulators], Accumulators]
    step: Callable[[Theta, Tensors, ft.Clock], Any]
    shaped: Callable[[Theta, jax.Array, jax.Array, Any], tuple[Any, Any]] | None = None
    takes_num_steps: bool = False

    @property
    def has_factored(self) -> bool:
        """Whether its accumulators have factored moments."""
        return "factored" in self.initial._fields

    @property
    def has_numbers(self) -> bool:
        """Whether its accumulators have numbers that describe a whole tensor."""
        return "numbers" in self.initial._fields


def per_tensor(
    init_theta: Callable[[jax.Array], Theta], rule: Rule, kernels: Mapping[str, Kernel] = MappingProxyType({})
) -> LearnedOptimizer:
    """An optimizer that applies a rule to each tensor.

    The rule computes in float32, or in float64 for float64 parameters; at the end its updates are rounded to
    the dtype of the parameters. A tensor without entries is skipped. An entry that has had no gradient stays,
    and a non-finite one does not affect other entries. Tensors are packed unless they are large, and one
    program computes the steps of all packed tensors.

    Args:
      init_theta: ``key -> theta``, the same weights for any number of tensors.
      rule: the rule.
      kernels: the rule for all tensors at once, in float32, by platform. Differentiation uses the rule
        instead.
    """
    fields = jax.tree.structure(rule.initial)

    def update(
        theta: Theta,
        gradients: Params,
        state: LearnedState,
        params: Params,
        num_steps: jax.typing.ArrayLike | None = None,
    ) -> tuple[Params, LearnedState]:
        leaves, tree = jax.tree.flatten(params)
        dtypes = [ft.state_dtype(param) for param in leaves]
        gradients, params = (
            [x.astype(dtype) for x, dtype in zip(tree.flatten_up_to(xs), dtypes, strict=True)]
            for xs in (gradients, params)
        )
        spread = [_is_spread(g) or _is_spread(p) for g, p in zip(gradients, params, strict=True)]
        accumulators = by_tensor(fields, tree, state.accumulators)

        total = jnp.asarray(jnp.inf if num_steps is None else num_steps, jnp.float32)

        def plain(theta: Theta, gradients: Any, params: Any, accumulators: Any, count: jax.Array) -> Any:
            return _update(rule, spread, theta, gradients, params, accumulators, ft.Clock(count, total))

        run: Any = plain
        if usable := _usable(kernels, dtypes, spread):
            run = jax.custom_jvp(partial(jax.lax.platform_dependent, **usable, default=plain))
            run.defjvp(partial(jax.jvp, plain))
        # By default a GPU computes float32 products in tf32; here only if the user has set JAX so.
        with jax.default_matmul_precision(_matmul_precision() or "float32"):
            outcomes = run(theta, gradients, params, accumulators, state.count)
        updates = [update.astype(leaf.dtype) for (update, _), leaf in zip(outcomes, leaves, strict=True)]
        accumulators = by_field(fields, tree, [own for _, own in outcomes])
        count = optax.safe_increment(state.count)
        return tree.unflatten(updates), LearnedState(count, accumulators)

    return LearnedOptimizer(
        init_theta=lambda key, blocks: init_theta(key),
        init=partial(initial_state, rule.initial),
        update=update,
        takes_num_steps=rule.takes_num_steps,
    )


def _update(
    rule: Rule,
    spread: Sequence[bool],
    theta: Theta,
    gradients: Sequence[jax.Array],
    params: Sequence[jax.Array],
    accumulators: Sequence[Accumulators],
    clock: ft.Clock,
) -> list[Outcome]:
    """The updates and next accumulators of all tensors."""
    outcomes: list[Any] = list(zip(params, accumulators, strict=True))  # right for tensors without entries
    # An entry without a gradient passes no derivative on: that of ``1 / sqrt`` of its moment may be infinite.
    gradients = [jnp.where(g != 0, g, jnp.zeros_like(g)) for g in gradients]
    for group in _groups(params, spread):
        own_theta = jax.tree.map(lambda w, like=params[group[0]]: w.astype(like.dtype), theta)
        after, pieces, numbers = _accumulated(
            rule, own_theta, *([xs[i] for i in group] for xs in (gradients, params, accumulators))
        )
        if spread[group[0]]:
            entries = jax.tree.map(lambda x: x[0], pieces, is_leaf=lambda x: isinstance(x, list))
            step, numbers = _step(rule, own_theta, Whole(entries, numbers), clock)
            steps = [step]
        else:
            packed = Packed([params[i].shape for i in group], pieces, numbers)
            step, numbers = _step(rule, own_theta, packed, clock)
            steps = packed.unpacked(step)
        if numbers is not None:
            split = unstacked(numbers.T, len(group))
            after = [own._replace(numbers=n) for own, n in zip(after, split, strict=True)]
        for i, outcome in zip(group, zip(steps, after, strict=True), strict=True):
            outcomes[i] = outcome
    return outcomes


def _accumulated(
    rule: Rule,
    theta: Theta,
    gradients: Sequence[jax.Array],
    params: Sequence[jax.Array],
    accumulators: Sequence[Accumulators],
) -> tuple[list[Accumulators], Entries, jax.Array | None]:
    """The next accumulators of some tensors; their entries, as lists of arrays; and their numbers."""
    # Under ``jit`` tensors of equal shape are traced once.
    accumulate = jax.jit(lambda theta, gradient, own: rule.accumulate(theta, ft.finite(gradient), own))
    after = [accumulate(theta, g, own) for g, own in zip(gradients, accumulators, strict=True)]
    seen = after
    shaped: list[Any] = []
    if rule.shaped:
        factored, shaped = _shaped(partial(rule.shaped, theta), gradients, after)
        if rule.has_factored:
            after = [own._replace(factored=moments) for own, moments in zip(after, factored, strict=True)]
            seen = [own._replace(factored=None) for own in after]
    numbers = None
    if rule.has_numbers:
        numbers = jnp.stack([own.numbers for own in seen], axis=1)
        seen = [own._replace(numbers=None) for own in seen]
    known: list[Any] = [[g[None] for g in gradients], [p[None] for p in params]]
    known += [jax.tree.map(lambda *xs: list(xs), *trees) if trees else None for trees in (seen, shaped)]
    return after, Entries(*known), numbers


def _shaped(
    shaped: Callable[[jax.Array, jax.Array, Any], tuple[Any, Any]],
    gradients: Sequence[jax.Array],
    accumulators: Sequence[Accumulators],
) -> tuple[list[Any], list[Any]]:
    """The next factored moments of each tensor, and the rule's arrays from its rows and columns.

    This depends on the shape and takes many small operations, so neighbours of equal shape are stacked.
    """

    def one(gradient: jax.Array, momenta: jax.Array, factored: Any) -> tuple[Any, Any]:
        return shaped(ft.finite(gradient), momenta, factored)

    after, seen = [], []
    for _, neighbours in itertools.groupby(range(len(gradients)), key=lambda i: gradients[i].shape):
        group = list(neighbours)
        own = [
            (gradients[i], accumulators[i].momenta, getattr(accumulators[i], "factored", ())) for i in group
        ]
        if len(group) == 1:
            moments, arrays = one(*own[0])
            after.append(moments)
        else:
            moments, arrays = jax.vmap(one, out_axes=(0, 1))(*jax.tree.map(lambda *xs: jnp.stack(xs), *own))
            after += unstacked(moments, len(group))
        seen.append(arrays)
    return after, seen


def _groups(params: Sequence[jax.Array], spread: Sequence[bool]) -> list[list[int]]:
    """Groups of tensors whose steps are computed together, without the tensors that have no entries."""
    groups: dict[Any, list[int]] = {}
    limit = LARGE if sum(param.size > SMALL for param in params) >= FEW else SMALL
    for i, param in sorted(enumerate(params), key=lambda numbered: (numbered[1].size, numbered[1].shape)):
        if param.size:
            kind = jax.typeof(param)
            together = (kind.dtype, kind.sharding.mesh)
            groups.setdefault(i if spread[i] or param.size > limit else together, []).append(i)
    return list(groups.values())


def _step(
    rule: Rule, theta: Theta, tensors: Packed | Whole, clock: ft.Clock
) -> tuple[jax.Array, jax.Array | None]:
    """The steps of all entries, including those that stay or are not finite; and the next numbers."""
    raw = tensors.entries
    tensors.entries = raw._replace(gradient=ft.finite(raw.gradient), param=ft.finite(raw.param))
    found = rule.step(theta, tensors, clock)
    step, numbers = found if rule.has_numbers else (found, None)
    return ft.allowed(step, raw.gradient[0], raw.accumulated.momenta[-1]), numbers


def _matmul_precision() -> str | None:
    """JAX's setting for the precision of products."""
    # JAX 0.10 has no types for its settings.
    return getattr(jax.config, "jax_default_matmul_precision", None)


def _usable(
    kernels: Mapping[str, Kernel], dtypes: Sequence[jnp.dtype], spread: Sequence[bool]
) -> dict[str, Kernel]:
    """The kernels that can run: none unless all tensors are float32 and not sharded."""
    if any(spread) or any(dtype != jnp.float32 for dtype in dtypes):
        return {}
    runs = {"cuda": _has_kernel_gpu, "cpu": native.in_use}
    return {platform: kernel for platform, kernel in kernels.items() if runs[platform]()}


def _has_kernel_gpu() -> bool:
    """Whether the default device is an NVIDIA GPU that Mosaic GPU compiles for."""
    if jax.default_backend() != "gpu":
        return False
    capability = getattr(jax.local_devices()[0], "compute_capability", "")
    return capability.replace(".", "").isdigit() and float(capability) >= KERNEL_CAPABILITY


def _is_spread(x: jax.Array) -> bool:
    """Whether a tensor is sharded over several devices, as far as its type tells.

    The type of a tensor shows how it is sharded along "explicit" mesh axes, but not along "auto" ones: with
    an "auto" axis a tensor always counts as sharded.
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
