"""Schedules of step sizes, with numbers that are learned."""

from __future__ import annotations

import math

import jax
import jax.numpy as jnp

from learned_opt._src.architectures import features as ft
from learned_opt._src.architectures.tunable import inverse_time_decay
from learned_opt._src.learned_optimizer import Theta

# The numbers of a fresh schedule.
WARM_UP_SHARE = 0.003  # of the steps, if their number is known
WARM_UP_STEPS = 3  # otherwise
POWER_OF_DECAY = 0.75  # if their number is not known
# The largest number of steps of an episode of ``general-tasks``. Steps of a longer run are smaller.
LONGEST = 2_000
# Weights are exponents of e, multiplied by this: with sigma = 0.1 a perturbation changes a number by a third.
RATE = 3.0

NAMES = ("warm_up", "power", "fade", "decay")


def init_schedules(count: int) -> Theta:
    """Weights of `count` fresh schedules, ``[count]`` for each number; all are zero."""
    return {name: jnp.zeros(count) for name in NAMES}


def constant_schedules(theta: Theta) -> Theta:
    """The weights with schedules that are 1 at all steps, for a rate and schedule of the user."""
    return {**theta, "schedule": {name: jnp.full_like(theta["schedule"][name], -jnp.inf) for name in NAMES}}


def pace_of(clock: ft.Clock) -> jax.Array:
    """``min(1, LONGEST / T)`` for a run of T steps, 1 if T is not known."""
    return jnp.where(jnp.isfinite(clock.num_steps), jnp.minimum(1, LONGEST / clock.num_steps), 1)


def progress_of(clock: ft.Clock) -> jax.Array:
    """Completed share of the run, 0 to 1; 0 if the number of steps is not known."""
    return jnp.clip(clock.step / clock.num_steps, 0, 1)


def schedules(theta: Theta, clock: ft.Clock) -> jax.Array:
    """The values of the schedules at a step, each 0 to 1, ``[count]``.

    With t steps taken, T steps in the run and p = t / T::

        schedule = warm-up(0.003 W T) min(1, 2000 / T)^(1/2) (1 - p)^A / (1 + B p)    if T is known
        schedule = warm-up(3 W) / (1 + t / 100)^(3 C / 4)                             otherwise
        warm-up(n) = min(1, (t + 1) / max(1, n))

    W, A, B and C are ``exp(3 w)`` for the weights w. Noise moves the parameters by the size of a step times
    the root of the number of steps, and the root in the first line keeps this the same in longer runs. A
    constant schedule, with A = 0, does not have it.

    Args:
      theta: the weights, ``[count]`` for each number.
      clock: the position of the step in the run.
    """
    warm_up, power, fade = (jnp.exp(RATE * theta[name]) for name in ("warm_up", "power", "fade"))
    progress = progress_of(clock)
    known = jnp.isfinite(clock.num_steps)
    warm_up *= jnp.where(known, WARM_UP_SHARE * clock.num_steps, WARM_UP_STEPS)
    pace = jnp.where(power > 0, jnp.sqrt(pace_of(clock)), 1)
    to_the_end = pace * (1 - progress) ** power / (1 + fade * progress)
    endless = inverse_time_decay(jnp.zeros(()), math.log(POWER_OF_DECAY) + RATE * theta["decay"], clock.step)
    return jnp.minimum(1, (clock.step + 1) / jnp.maximum(1, warm_up)) * jnp.where(known, to_the_end, endless)
