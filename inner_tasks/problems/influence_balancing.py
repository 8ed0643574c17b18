"""Influence balancing: a linear system in which short truncations point the wrong way."""

from __future__ import annotations

import dataclasses
from typing import ClassVar, NamedTuple

import jax
import jax.numpy as jnp

ENTRIES = 23
POSITIVE = 10  # entries that theta pushes up; it pushes the others down


class InfluenceState(NamedTuple):
    """Inner state."""

    s: jax.Array  # float [23]
    step: jax.Array  # int32 [], steps taken


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class InfluenceBalancing:
    """``s_t = A s_{t-1} + theta v``, ``L_t = (s_t[0] - 1)^2 / 2`` at every `loss_every`-th step, else 0.

    ``s`` has 23 entries and starts as ones. A is 0.5 on the diagonal and on the superdiagonal, so that the
    effect of theta on entry i reaches entry 0 only i steps later; v is +1 for the first 10 entries and -1 for
    the others. In the short run theta raises s[0]; in the long run it lowers it: the gain settles at -6, and
    theta = -1/6 is the optimum. The loss is taken after the step. An episode practically never
    ends: the horizon is a billion steps.

    Source: Tallec, Ollivier, "Unbiased Online Recurrent Optimization", ICLR 2018, section 5; with the sizes
    of Vicol, Metz, Sohl-Dickstein, ICML 2021.
    """

    loss_every: int = dataclasses.field(default=1, metadata={"static": True})
    horizon: int = dataclasses.field(default=10**9, metadata={"static": True})
    max_loss: ClassVar[None] = None
    differentiable: ClassVar[bool] = True

    def init(self, key: jax.Array) -> InfluenceState:
        """Ones."""
        del key
        return InfluenceState(jnp.ones(ENTRIES), jnp.zeros((), jnp.int32))

    def step(
        self, theta: jax.Array, state: InfluenceState, key: jax.Array
    ) -> tuple[InfluenceState, jax.Array]:
        """The next state, and the loss, which is 0 between the steps that have one."""
        del key
        push = jnp.where(jnp.arange(ENTRIES) < POSITIVE, theta, -theta)
        s = 0.5 * state.s + 0.5 * jnp.append(state.s[1:], 0) + push
        step = state.step + 1
        loss = jnp.where(step % self.loss_every == 0, 0.5 * (s[0] - 1) ** 2, 0)
        return InfluenceState(s, step), loss
