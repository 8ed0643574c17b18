"""Per-parameter networks that see the gradient, the value, and momenta: ``mlp`` and ``metz2019``."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from typing import Any, NamedTuple

import jax

from learned_opt._src.architectures import features as ft
from learned_opt._src.architectures.momentum_native import momentum_native
from learned_opt._src.architectures.per_parameter import apply_network, init_network, rms_scale, small_step
from learned_opt._src.architectures.per_tensor import Rule, per_tensor
from learned_opt._src.architectures.tensors import Each, Entries, Tensors
from learned_opt._src.learned_optimizer import LearnedOptimizer, Theta

EPSILON = 1e-5


class Accumulators(NamedTuple):
    """Accumulators of one tensor."""

    momenta: jax.Array  # [k, *shape]


def momentum_network(
    hidden: Sequence[int],
    momentum_decays: Sequence[float],
    time_scales: Sequence[float],
    features: Sequence[ft.Feature],
) -> LearnedOptimizer:
    """A per-parameter network that sees momenta and the step number, and moves by ``small_step``.

    On a GPU it runs as one kernel (``momentum_kernel.py``), and on a CPU too if that is asked for
    (``momentum_native.py``).

    Args:
      hidden: widths of the hidden layers.
      momentum_decays: decays of the k momenta.
      time_scales: time scales of the features of the step number.
      features: the network's features of a parameter, in order; momenta count as k features.
    """

    def init_theta(key: jax.Array) -> Theta:
        inputs = sum(len(momentum_decays) if source == "momenta" else 1 for source, _ in features)
        return init_network(key, inputs + len(time_scales), hidden, outputs=2)

    def accumulate(theta: Theta, gradient: jax.Array, accumulators: Accumulators) -> Accumulators:
        return Accumulators(ft.averaged(accumulators.momenta, gradient, momentum_decays))

    def seen(entries: Entries, each: Each) -> list[jax.Array]:
        sources = entries._asdict() | {"momenta": entries.accumulated.momenta}
        return [factor * sources[source] for source, factor in features]

    def step(theta: Theta, tensors: Tensors, clock: ft.Clock) -> jax.Array:
        time = ft.time_features(clock.step, time_scales)
        scale = rms_scale(tensors, seen, EPSILON)
        return apply_network(theta, tensors, seen, scale, time, lambda out, *_: small_step(out))

    def kernel(
        run: Callable[..., list[tuple[jax.Array, jax.Array]]],
        theta: Theta,
        gradients: Sequence[jax.Array],
        params: Sequence[jax.Array],
        accumulators: Sequence[Accumulators],
        count: jax.Array,
    ) -> list[tuple[jax.Array, Accumulators]]:
        momenta, time = [own.momenta for own in accumulators], ft.time_features(count, time_scales)
        settings: dict[str, Any] = dict(features=features, decays=momentum_decays, epsilon=EPSILON)
        outcomes = run(theta, gradients, params, momenta, time, **settings)
        return [(step, Accumulators(after)) for step, after in outcomes]

    initial = Accumulators(ft.starting(ft.accumulator, count=len(momentum_decays)))
    kernels = {"cuda": partial(kernel, _on_gpu), "cpu": partial(kernel, momentum_native)}
    return per_tensor(init_theta, Rule(initial, accumulate, step), kernels)


def _on_gpu(*args: Any, **settings: Any) -> list[tuple[jax.Array, jax.Array]]:
    # Imported late: Pallas takes a second.
    from learned_opt._src.architectures.momentum_kernel import momentum_kernel

    return momentum_kernel(*args, **settings)
