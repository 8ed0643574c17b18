"""The metrics of an update: each estimator sums, and a population reduces the sums.

To add a metric, add an entry to ``METRICS``, and one to ``SUMS`` if it needs a new sum.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax

from meta_train.estimators.antithetic import one_broke
from meta_train.estimators.base import Info, Theta
from meta_train.estimators.window import Window


class Unrolled(NamedTuple):
    """The windows that one estimate unrolled, of each of its particles."""

    windows: tuple[Window, ...]  # a window with a leading axis is of several particles
    xi: Theta | None  # the perturbation that weighted the losses; None if nothing is perturbed
    steps: jax.Array  # real inner steps of each particle
    ended: jax.Array  # whether the episode is over

    @property
    def particles(self) -> int:
        """Number of particles."""
        return sum(jnp.size(each.loss) for each in self.windows)


# The sums of an estimate, float32 scalars; the sums of many estimates add up.
SUMS: Mapping[str, Callable[[Unrolled], Any]] = {
    # losses of the real steps, clipped if the problem clips them
    "loss": lambda unrolled: _total(each.loss for each in unrolled.windows),
    # the squares of each particle's summed loss
    "square_loss": lambda unrolled: _total(jnp.square(each.loss) for each in unrolled.windows),
    # steps whose loss was finite and clipped
    "clipped": lambda unrolled: _total(each.clipped for each in unrolled.windows),
    # steps whose loss was not finite
    "nonfinite": lambda unrolled: _total(each.nonfinite for each in unrolled.windows),
    # antithetic pairs that are ignored, because the loss of exactly one particle was not finite
    "dropped": lambda unrolled: _total(one_broke(each) for each in unrolled.windows if jnp.ndim(each.loss)),
    # norm of the accumulated perturbation, 0 if nothing is perturbed
    "xi_norm": lambda unrolled: 0 if unrolled.xi is None else optax.tree.norm(unrolled.xi),
    # episodes completed, by all particles
    "episodes": lambda unrolled: jnp.float32(unrolled.particles) * unrolled.ended,
    # real inner steps, of all particles
    "steps": lambda unrolled: jnp.float32(unrolled.particles) * unrolled.steps,
    "particles": lambda unrolled: unrolled.particles,
    # antithetic pairs, or single particles
    "units": lambda unrolled: 1,
}


class Metric(NamedTuple):
    """A number that is logged for every update.

    Attributes:
      name: its key in the metrics file.
      meaning: one phrase, which the documentation repeats.
      sum: the sum that it is computed from; None if the population or the outer loop computes it from the
        whole meta-gradient.
      per: the sum that it is divided by; None for a total.
    """

    name: str
    meaning: str
    sum: str | None = None
    per: str | None = None


METRICS = (
    Metric("loss", "meta-loss: mean loss per inner step over all particles and this window", "loss", "steps"),
    Metric("gradient_norm", "norm of the meta-gradient; the outer optimizer sees it divided by this norm"),
    Metric("snr", "norm of the meta-gradient over its standard error, from the scatter across pairs"),
    Metric(
        "snr_across",
        "norm of the running mean of the last 100 or so meta-gradients over its standard error, from their "
        "scatter across updates",
    ),
    Metric("xi_norm", "norm of the accumulated perturbation, mean over pairs", "xi_norm", "units"),
    Metric("clipped", "share of inner steps whose loss was finite and clipped", "clipped", "steps"),
    Metric("nonfinite", "share of inner steps whose loss was not finite", "nonfinite", "steps"),
    Metric(
        "dropped",
        "share of the antithetic pairs that were ignored, because the loss of exactly one particle was not "
        "finite",
        "dropped",
        "units",
    ),
    Metric("episodes", "episodes completed in this update, by all particles", "episodes"),
    Metric("steps", "particle-steps of this update", "steps"),
)


# Metrics that a distribution also logs for each of its tasks.
OF_EACH_TASK = ("loss", "gradient_norm", "snr")


def summed(unrolled: Unrolled) -> Info:
    """The sums of one estimate."""
    return {name: jnp.asarray(measure(unrolled), jnp.float32) for name, measure in SUMS.items()}


def reduced(totals: Info, gradient_norm: jax.Array, snr: jax.Array) -> dict[str, jax.Array]:
    """The metrics of a population.

    Args:
      totals: the sums of all its units.
      gradient_norm: norm of its meta-gradient.
      snr: the norm over its standard error.
    """
    values = {"gradient_norm": gradient_norm, "snr": snr}
    for metric in METRICS:
        if metric.sum is not None:
            values[metric.name] = (
                totals[metric.sum] / totals[metric.per] if metric.per else totals[metric.sum]
            )
    return {metric.name: values[metric.name] for metric in METRICS if metric.name in values}


def over_tasks(
    each: Mapping[str, Mapping[str, jax.Array]], gradient_norm: jax.Array, snr: jax.Array
) -> dict[str, jax.Array]:
    """The metrics of several tasks: the mean of relative metrics, the sum of totals, and some of each task.

    Args:
      each: the metrics of each task, by its name.
      gradient_norm: norm of their common meta-gradient.
      snr: the norm over its standard error.
    """
    values = {"gradient_norm": gradient_norm, "snr": snr}
    for metric in METRICS:
        if metric.sum is not None:
            stacked = jnp.stack([own[metric.name] for own in each.values()])
            values[metric.name] = stacked.mean() if metric.per else stacked.sum()
    together = {metric.name: values[metric.name] for metric in METRICS if metric.name in values}
    return together | {f"{task}/{name}": own[name] for task, own in each.items() for name in OF_EACH_TASK}


def _total(values: Iterable[jax.Array]) -> jax.Array:
    return sum((jnp.sum(value) for value in values), jnp.zeros(())).astype(jnp.float32)
