"""The control experiment: its gradient by hand, and the whole experiment in miniature."""

from __future__ import annotations

import json
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from inner_tasks import LinearRecurrence
from inner_tasks.problems import swimmer
from meta_train.estimators import mean_of, pes
from meta_train.experiments import control
from meta_train.experiments.base import Outcome

pytest.importorskip("mujoco")

from tests.meta_train.command import pes_paper  # noqa: E402


def test_gradient_is_over_the_standard_deviation_of_the_losses():
    """``sum(L u) / (std(L) N)`` over all 2 N' particles, from their losses."""
    problem, theta, sigma, truncation, pairs = LinearRecurrence(horizon=6), jnp.float32(0.2), 0.3, 2, 4
    unit = pes(problem, sigma=sigma, truncation=truncation)
    many = control.standardised(mean_of(unit, pairs), sigma)
    state = many.init(jax.random.key(0), theta)
    key = jax.random.key(1)
    gradient, after, _ = many.estimate(theta, state, key)
    losses, units = [], []
    for number, own in enumerate(jax.random.split(key, pairs)):
        single = jax.tree.map(lambda x, n=number: x[n], state)
        _, moved, info = unit.estimate(theta, single, own)
        epsilon = float(moved.carried.xi - single.carried.xi)
        both = []
        for sign in (1, -1):  # the recurrence again, without noise
            s, total = jnp.float32(0), 0.0
            inner = jax.tree.map(lambda x, i=(1 - sign) // 2: x[i], single.carried.inner)
            for step_key in jax.random.split(jax.random.split(own, 3)[2], truncation):
                inner, s = problem.step(theta + sign * epsilon, inner, step_key)
                total += float(s)
            both.append(total)
        assert sum(both) == pytest.approx(float(info["loss"]), rel=1e-5)
        losses += both
        units += [epsilon / sigma, -epsilon / sigma]
    expected = np.dot(losses, units) / (np.std(losses) * 2 * pairs)
    assert truncation * float(gradient) == pytest.approx(expected, rel=1e-4)


def test_steps_to_the_goal():
    loss = np.array([[0.0, 301, 100], [0, 10, 20]])
    outcome = Outcome(loss[:, -1], np.zeros((2, 1)), {"steps": np.array([0, 7, 14]), "loss": loss})
    np.testing.assert_array_equal(control.steps_to_goal(outcome), [7, np.inf])


@pytest.mark.slow
def test_in_miniature(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """Two updates with episodes of six steps, without the physics, which take minutes to compile."""

    def drift(model, state, action):
        speed = state.qvel.at[:2].add(0.1 * action)
        return state._replace(qpos=state.qpos + 0.04 * speed, qvel=speed)

    monkeypatch.setattr(swimmer, "advance", drift)
    monkeypatch.setattr(control, "PAIRS", 2)
    monkeypatch.setitem(control.STEPS, "small", 48)
    monkeypatch.setitem(control.RECORDS, "small", 2)
    methods = {
        name: method._replace(truncation=6 if name == "full-es" else 3)
        for name, method in control.METHODS.items()
    }
    monkeypatch.setattr(control, "METHODS", methods)
    make = control.swimmer
    monkeypatch.setattr(control, "swimmer", lambda: control.Swimmer(make().model, horizon=6))
    ended = pes_paper("control --seeds 0 1 --out", tmp_path)
    assert ended.code == 1 and "does not hold" in ended.err
    result = json.loads((tmp_path / "result.json").read_text())
    for method in result["methods"].values():
        assert method["curve"]["steps"][-1] == 48
        assert np.isfinite(method["curve"]["loss"]).all()
    assert all((tmp_path / name).stat().st_size > 10_000 for name in ("control.png", "control_gait.png"))
