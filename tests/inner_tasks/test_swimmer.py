"""The swimmer, against the simulator in C and Gymnasium's environment."""

from __future__ import annotations

import warnings

import jax
import jax.numpy as jnp
import numpy as np
import pytest

pytest.importorskip("mujoco")

import gymnasium  # noqa: E402
import mujoco  # noqa: E402

from inner_tasks.problems.swimmer import SwimmerState, advance, c_model, swimmer  # noqa: E402

PROBLEM = swimmer()


@pytest.mark.slow
def test_it_swims_as_in_c():
    """400 physics steps with random torques, some of them beyond the limits."""
    rng = np.random.default_rng(0)
    qpos, qvel = rng.uniform(-0.1, 0.1, (2, 5))
    actions = rng.uniform(-1.5, 1.5, (100, 2))
    state = SwimmerState(jnp.float32(qpos), jnp.float32(qvel), jnp.zeros(5))

    @jax.jit
    def run(problem, state, actions):
        def step(state, action):
            state = advance(problem.model, state, action)
            return state, state

        return jax.lax.scan(step, state, actions)[1]

    found = run(PROBLEM, state, jnp.float32(actions))
    model = c_model()
    data = mujoco.MjData(model)
    data.qpos[:], data.qvel[:] = qpos, qvel
    for number, action in enumerate(actions):
        data.ctrl[:] = action
        for _ in range(4):
            mujoco.mj_step(model, data)
        np.testing.assert_allclose(found.qpos[number], data.qpos, atol=1e-3)
        np.testing.assert_allclose(found.qvel[number], data.qvel, atol=1e-3)


@pytest.mark.slow
def test_losses_are_gymnasiums_rewards():
    theta = 0.5 * jax.random.normal(jax.random.key(0), (2, 8))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        environment = gymnasium.make("Swimmer-v5").unwrapped
    observation, _ = environment.reset(seed=1)
    qpos, qvel = environment.data.qpos.copy(), environment.data.qvel.copy()
    state = SwimmerState(jnp.float32(qpos), jnp.float32(qvel), jnp.zeros(5))
    step = jax.jit(lambda problem, state: problem.step(theta, state, jax.random.key(0)))
    for _ in range(20):
        state, loss = step(PROBLEM, state)
        observation, reward, *_ = environment.step(np.asarray(theta) @ observation)
        assert -float(loss) == pytest.approx(reward, abs=1e-3)


def test_it_starts_near_the_straight_position():
    states = jax.vmap(PROBLEM.init)(jax.random.split(jax.random.key(0), 200))
    for noise in (states.qpos, states.qvel):
        assert -0.1 <= noise.min() < -0.09 and 0.09 < noise.max() <= 0.1
    assert not np.array_equal(states.qpos, states.qvel)
