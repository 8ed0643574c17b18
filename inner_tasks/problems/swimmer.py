"""A swimmer of three links, steered by a linear policy, in MuJoCo's simulator written in JAX."""

from __future__ import annotations

import contextlib
import dataclasses
import io
from pathlib import Path
from typing import Any, ClassVar, NamedTuple

import jax
import jax.numpy as jnp

from learned_opt._src.errors import UserError

FRAME_SKIP = 4  # physics steps for each step of the environment
CONTROL_COST = 1e-4
RESET_NOISE = 0.1
OBSERVATIONS, ACTIONS = 8, 2


class SwimmerState(NamedTuple):
    """Inner state: the state that the simulator carries from step to step."""

    qpos: jax.Array  # float32 [5]: x, y, angle of the first link, angles of the two joints
    qvel: jax.Array  # float32 [5], their derivatives
    warmstart: jax.Array  # float32 [5], initial accelerations for the constraint solver


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Swimmer:
    """Swimming forward; theta is the policy, float ``[actions, observations]``.

    The observations o are the angles and all velocities. The actions ``a = theta o`` are the torques of the
    two joints, which the simulator clips at 1. ``L_t`` is minus the reward; the reward is the speed minus a
    cost of the actions::

        L_t = -(x_t - x_{t-1}) / 0.04 + 1e-4 |a|^2

    An episode starts straight and at rest, up to uniform noise of 0.1 in each coordinate. The losses have no
    useful derivative, because the joints have limits.

    Source: Gymnasium's ``Swimmer``, whose model it loads (version 2 of the environment and later ones);
    Coulom, "Reinforcement learning using neural networks, with applications to motor control", 2002.
    """

    model: Any  # the simulator's model
    horizon: int = dataclasses.field(default=1000, metadata={"static": True})
    max_loss: ClassVar[None] = None
    differentiable: ClassVar[bool] = False

    def init(self, key: jax.Array) -> SwimmerState:
        """Near the straight position, at rest."""
        position_key, velocity_key = jax.random.split(key)

        def noise(key: jax.Array) -> jax.Array:
            return jax.random.uniform(key, (5,), minval=-RESET_NOISE, maxval=RESET_NOISE)

        return SwimmerState(noise(position_key), noise(velocity_key), jnp.zeros(5))

    def step(self, theta: jax.Array, state: SwimmerState, key: jax.Array) -> tuple[SwimmerState, jax.Array]:
        """One step of the environment; nothing in it is random."""
        del key
        action = theta @ observed(state)
        after = advance(self.model, state, action)
        speed = (after.qpos[0] - state.qpos[0]) / (FRAME_SKIP * self.model.opt.timestep)
        return after, CONTROL_COST * jnp.sum(action**2) - speed


def observed(state: SwimmerState) -> jax.Array:
    """The observations, ``[8]``; they do not include the swimmer's position."""
    return jnp.concatenate([state.qpos[2:], state.qvel])


def advance(model: Any, state: SwimmerState, action: jax.Array) -> SwimmerState:
    """Simulate one step of the environment."""
    mjx = _simulator()
    data = mjx.make_data(model).replace(
        qpos=state.qpos, qvel=state.qvel, qacc_warmstart=state.warmstart, ctrl=action
    )
    data = jax.lax.fori_loop(0, FRAME_SKIP, lambda _, data: mjx.step(model, data), data)
    return SwimmerState(data.qpos, data.qvel, data.qacc_warmstart)


def swimmer() -> Swimmer:
    """The swimmer with Gymnasium's model.

    Raises:
      UserError: the simulator is not installed.
    """
    return Swimmer(_simulator().put_model(c_model()))


def c_model() -> Any:
    """The same model for the simulator in C."""
    try:
        import gymnasium
        import mujoco
    except ImportError as error:
        raise _missing(error) from None
    assets = Path(gymnasium.__file__).parent / "envs" / "mujoco" / "assets"
    return mujoco.MjModel.from_xml_path(str(assets / "swimmer.xml"))


def _simulator() -> Any:
    try:
        # On import it reports that an optional part is missing, which nothing here needs.
        with contextlib.redirect_stdout(io.StringIO()), contextlib.redirect_stderr(io.StringIO()):
            from mujoco import mjx
    except ImportError as error:
        raise _missing(error) from None
    return mjx


def _missing(error: ImportError) -> UserError:
    return UserError(f"the swimmer needs MuJoCo ({error}); install it with: pip install -e '.[control]'")
