"""The hand-designed optimizers of a comparison: an update rule, and a schedule for its learning rate."""

from __future__ import annotations

import inspect
import itertools
from collections.abc import Callable
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax

from learned_opt import LearnedOptimizer, UserError, pretrained_names
from meta_train.report.evaluation import Contestant

Rate = jax.Array | float  # a learning rate; traced, since one program tries many of them
# Share of the steps in which the learning rate rises, if a schedule has a warm-up. A longer warm-up would
# cost short runs more than it gains.
WARM_UP = 0.02


class Rule(NamedTuple):
    """An update rule.

    Attributes:
      label: its name in tables and pictures.
      make: makes it from a learning rate or an optax schedule.
      colour: its colour in pictures; None for the next unused one.
    """

    label: str
    make: Callable[[Any], optax.GradientTransformation]
    colour: str | None = None


class Schedule(NamedTuple):
    """How the learning rate changes over a run.

    Attributes:
      label: its name in tables and pictures, empty for a constant rate.
      make: ``(rate, steps) -> learning rate or optax schedule``.
      line: its line style in pictures.
      marker: its marker in pictures without lines.
    """

    label: str
    make: Callable[[Rate, int], Any]
    line: str
    marker: str


class Baseline(NamedTuple):
    """A rule with a schedule."""

    rule: Rule
    schedule: Schedule

    @property
    def label(self) -> str:
        """Its name in tables and pictures."""
        return f"{self.rule.label}, {self.schedule.label}" if self.schedule.label else self.rule.label


def constant(rate: Rate, steps: int) -> Rate:
    """The same learning rate at every step."""
    return rate


def cosine(rate: Rate, steps: int) -> optax.Schedule:
    """Rises linearly to `rate` over the first fiftieth of the steps, then falls to 0 as a cosine.

    The first step has a rate above 0, and 0 is reached only after the last step, so no step is wasted.
    """
    peak = max(1, round(WARM_UP * steps)) - 1
    rise = optax.linear_schedule(rate / (peak + 1), rate, peak)
    return optax.join_schedules([rise, optax.cosine_decay_schedule(rate, steps - peak)], [peak])


def linear(rate: Rate, steps: int) -> optax.Schedule:
    """Falls linearly from `rate` at the first step to 0, which is reached only after the last step."""
    return optax.linear_schedule(rate, 0.0, steps)


# NAdam has a smaller b2, which suits short runs. Muon's steps are scaled to the size of Adam's, so that one
# learning rate suits both its matrices and the tensors that it leaves to Adam. The rest are optax's defaults.
RULES = {
    "adam": Rule("Adam", optax.adam, "#0000a7"),
    "adamw": Rule("AdamW", optax.adamw, "#57a0d3"),
    "nadam": Rule("NAdam", partial(optax.nadam, b2=0.99), "#984ea3"),
    "sgdm": Rule("SGD, momentum", partial(optax.sgd, momentum=0.9), "#008176"),
    "rmsprop": Rule("RMSProp", optax.rmsprop, "#b87333"),
    "muon": Rule("Muon", partial(optax.contrib.muon, consistent_rms=0.2), "#e69f00"),
}
# By the suffix of a baseline's name.
SCHEDULES = {
    "": Schedule("", constant, "-", "x"),
    "-cosine": Schedule("cosine", cosine, "--", "+"),
    "-linear": Schedule("linear", linear, ":", "v"),
}
BASELINES = {
    rule + ending: Baseline(RULES[rule], SCHEDULES[ending])
    for rule, ending in itertools.product(RULES, SCHEDULES)
}
# The baselines of every comparison: constant Adam, the reference of the ratios, and other rules, each with
# the schedule that suits it best on digits-mlp.
DEFAULT_BASELINES = ("adam", "adamw-cosine", "nadam-cosine", "sgdm-linear", "muon-linear")


def find_baseline(name: str) -> Baseline:
    """The baseline called `name`.

    Args:
      name: a key of ``BASELINES``; or an optimizer in ``optax`` whose first argument is its learning rate,
        such as ``lion``, optionally with the suffix of a schedule, such as ``lion-cosine``.

    Raises:
      UserError: there is no baseline of this name, or it needs more than gradients and parameters.
    """
    if name in BASELINES:
        return BASELINES[name]
    ending = next((ending for ending in SCHEDULES if ending and name.endswith(ending)), "")
    make: Any = getattr(optax, name.removesuffix(ending), None)
    try:
        first = next(iter(inspect.signature(make).parameters), None)
    except (TypeError, ValueError):  # there is no such function, or a class without a signature
        first = None
    if first != "learning_rate":
        raise UserError(
            f"'{name}' is not an optimizer file, a pretrained optimizer ({', '.join(pretrained_names())}) or "
            f"an optax optimizer that takes a learning rate, such as {', '.join(RULES)}, with or without "
            f"{' or '.join(filter(None, SCHEDULES))} appended for a schedule"
        )
    found = Baseline(Rule(name.removesuffix(ending), make), SCHEDULES[ending])
    if not _takes_gradients_only(found):
        raise UserError(
            f"'{name}' cannot be compared: optax.{found.rule.label} cannot compute an update from gradients "
            "and parameters alone with this kind of learning rate; give another optimizer"
        )
    return found


def _takes_gradients_only(baseline: Baseline) -> bool:
    """Whether an update as in a comparison can be traced, for a matrix and a vector."""
    optimizer = tuned(baseline, steps=100).optimizer

    def update(rate: jax.Array, params: Any) -> Any:
        return optimizer.update(rate, params, optimizer.init(params), params)

    try:
        jax.eval_shape(update, jnp.float32(1), [jnp.ones((2, 3)), jnp.ones(3)])
    except Exception:  # whatever an optimizer of another kind raises
        return False
    return True


def baseline(name: str, steps: int) -> Contestant:
    """A hand-designed optimizer for runs of the given number of steps, whose learning rate is to be tuned.

    Raises:
      UserError: there is no baseline of this name.
    """
    return tuned(find_baseline(name), steps)


def tuned(baseline: Baseline, steps: int) -> Contestant:
    """A rule with a schedule for runs of the given number of steps, whose learning rate is to be tuned."""
    rule, schedule = baseline

    def make(rate: Rate) -> optax.GradientTransformation:
        return rule.make(schedule.make(rate, steps))

    def update(theta: jax.Array, gradients: Any, state: Any, params: Any) -> tuple[Any, Any]:
        return make(theta).update(gradients, state, params)

    return Contestant(
        LearnedOptimizer(
            init_theta=lambda key, blocks: jnp.float32(1e-3),
            init=lambda params: make(1e-3).init(params),
            update=update,
        ),
        None,
    )


def label(name: str) -> str:
    """The name of an optimizer in tables and pictures."""
    return BASELINES[name].label if name in BASELINES else name
