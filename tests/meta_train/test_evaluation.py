"""The comparison: its runs against a plain training loop, its tuning against the rates it should find."""

from __future__ import annotations

import dataclasses
from contextlib import nullcontext

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import learned_opt
from inner_tasks import Task, TaskSettings, Training, find_task
from meta_train.comparison import Comparison, card, compare, learning_rates, rows, summary
from meta_train.evaluation import (
    BASELINES,
    LEARNING_RATES,
    Contestant,
    Result,
    Runs,
    baseline,
    evaluation_key,
    run,
)

STEPS = 30


def quadratic(scale: float = 1.0) -> Task:
    """``0.5 * scale * |x|^2`` with nothing random but the initialisation."""
    return Task(
        init=lambda key: jax.random.normal(key, (5,)),
        sample=lambda data, key: None,
        loss=lambda params, batch: 0.5 * scale * jnp.sum(params**2),
        metrics=lambda params, data: {"distance": jnp.linalg.norm(params)},
        load=lambda data_dir: (),
        horizon=STEPS,
    )


def on_quadratic(scale: float = 1.0) -> Training:
    return Training((), quadratic(scale), learned_opt.get_architecture("mlp"), STEPS)


@pytest.fixture(scope="module")
def digits() -> Training:
    task = find_task("digits-mlp").build(TaskSettings(hidden=(32,), batch_size=64, horizon=STEPS))
    return Training(task.load(None), task, learned_opt.get_architecture("mlp"), STEPS)


@pytest.mark.parametrize("devices", [1, 2])
def test_exported_optimizer_in_a_plain_loop_gives_the_same_losses_to_the_bit(digits, devices, tmp_path):
    theta = digits.init_theta(jax.random.key(3))
    learned_opt.save(tmp_path / "optimizer.safetensors", "mlp", theta, {})
    runs = run(digits, Contestant(digits.optimizer, theta), 2, devices=devices).runs

    tx = learned_opt.load(tmp_path / "optimizer.safetensors")

    @jax.jit
    def step(params, state, batch):
        loss, gradients = jax.value_and_grad(digits.task.loss)(params, batch)
        updates, state = tx.update(gradients, state, params)
        return optax.apply_updates(params, updates), state, loss

    for seed in range(2):
        init_key, data_key = jax.random.split(evaluation_key(seed))
        params = digits.task.init(init_key)
        state, losses = tx.init(params), []
        for key in jax.random.split(data_key, STEPS):
            batch = digits.task.sample(digits.data, key)
            params, state, loss = step(params, state, batch)
            losses.append(loss)
        np.testing.assert_array_equal(np.array(losses), runs.losses[seed])
        metrics = digits.task.metrics(params, digits.data)
        np.testing.assert_allclose(metrics["validation_accuracy"], runs.metrics["validation_accuracy"][seed])
    assert (runs.losses[0] != runs.losses[1]).all()


@pytest.mark.parametrize("name", BASELINES)
def test_baseline_is_the_optax_optimizer(name):
    training = on_quadratic()
    tuned = run(training, baseline(name), seeds=2, rates=[1e-2, 1e-1, 1.0], devices=1)
    tx = BASELINES[name](np.float32(tuned.learning_rate))
    params = training.task.init(jax.random.split(evaluation_key(1))[0])
    state, losses = tx.init(params), []
    for _ in range(STEPS):
        loss, gradient = jax.value_and_grad(training.task.loss)(params, None)
        updates, state = tx.update(gradient, state, params)
        params = optax.apply_updates(params, updates)
        losses.append(loss)
    np.testing.assert_allclose(tuned.runs.losses[1], losses, rtol=1e-4, atol=1e-7)


@pytest.mark.parametrize("rates", [[1e-5, 1e-4], [10.0, 30.0, 90.0], [1e-3]])
def test_tuning_goes_on_beyond_an_end_point(rates):
    """SGD with momentum 0.9 on curvature 1 is best near the critical (1 - sqrt(0.9))^2 = 2.6e-3 to 0.1."""
    tuned = run(on_quadratic(), baseline("sgdm"), seeds=2, rates=rates, devices=1)
    assert min(tuned.tried) < tuned.learning_rate < max(tuned.tried)
    assert tuned.tried[tuned.learning_rate] == min(tuned.tried.values())
    assert np.isfinite(tuned.runs.mean_loss).all()


def test_rates_that_diverge_lose():
    tuned = run(on_quadratic(scale=1e4), baseline("sgdm"), seeds=2, rates=[1e-6, 1e-4, 1e18], devices=1)
    assert tuned.tried[1e18] == np.inf
    assert tuned.learning_rate < 1e-2


def test_devices_and_seeds_do_not_change_a_run():
    training = on_quadratic()
    learned = Contestant(training.optimizer, training.init_theta(jax.random.key(0)))
    one = run(training, learned, seeds=3, devices=1).runs
    two = run(training, learned, seeds=5, devices=2).runs
    np.testing.assert_array_equal(one.losses, two.losses[:3])
    np.testing.assert_array_equal(one.metrics["distance"], two.metrics["distance"][:3])


def test_grid_of_learning_rates():
    np.testing.assert_allclose(learning_rates(15), np.logspace(-4, 0, 15))
    np.testing.assert_allclose(learning_rates(3), [1e-4, 1e-2, 1])
    np.testing.assert_array_equal(LEARNING_RATES, learning_rates(15))


def test_mean_and_final_loss():
    losses = np.arange(40.0, dtype=np.float32).reshape(2, 20)
    losses[1, 3] = np.nan
    runs = Runs(losses, {})
    np.testing.assert_array_equal(runs.mean_loss, [9.5, np.inf])
    np.testing.assert_array_equal(runs.final_loss, [18.5, 38.5])


@pytest.fixture(scope="module")
def comparison() -> Comparison:
    training = on_quadratic()
    learned = Contestant(training.optimizer, training.init_theta(jax.random.key(0)))
    contestants = {"learned": learned} | {name: baseline(name) for name in BASELINES}
    advances: dict[str, list[tuple[int, int]]] = {}

    def watch(name: str):
        return nullcontext(lambda *advance: advances.setdefault(name, []).append(advance))

    rates = [1e-2, 1e-1, 1.0]
    found = compare("quadratic", training, contestants, seeds=2, rates=rates, devices=1, chunk=1, watch=watch)
    assert advances["learned"] == [(1, 2), (2, 2)]
    for name in BASELINES:
        runs = [done for done, planned in advances[name]]
        assert runs == list(range(1, 2 * len(found.results[name].tried) + 1))
        assert advances[name][0][1] == 6 and advances[name][-1][0] == advances[name][-1][1]
    return found


def test_summary(comparison):
    found = summary(comparison)
    assert (found["task"], found["steps"], found["seeds"]) == ("quadratic", STEPS, 2)
    assert found["optimizers"].keys() == {"learned", "adam", "adamw", "sgdm", "rmsprop"}
    learned, adam = found["optimizers"]["learned"], found["optimizers"]["adam"]
    assert learned["mean_loss"] == pytest.approx(comparison.results["learned"].runs.losses.mean(), rel=1e-6)
    assert learned["ratio_to_adam"] == pytest.approx(learned["mean_loss"] / adam["mean_loss"], rel=1e-6)
    assert adam["ratio_to_adam"] == 1
    assert adam["learning_rate"] in [entry["learning_rate"] for entry in adam["tried"]]
    assert learned["learning_rate"] is None and "tried" not in learned


def test_non_finite_learned_optimizer_is_null_in_the_summary(comparison):
    broken = Runs(np.full((2, STEPS), np.nan, np.float32), {"distance": np.full(2, np.nan)})
    broken_too = comparison._replace(results=comparison.results | {"learned": Result(broken)})
    found = summary(broken_too)["optimizers"]["learned"]
    assert found["ratio_to_adam"] is found["mean_loss"] is found["distance"] is found["steps_to_adam"] is None
    assert broken_too.failed("learned") and not broken_too.failed("adam")


def test_steps_to_adam_and_failure():
    """Against curves for which both can be read off."""
    adam = np.tile(np.linspace(10, 1, 20, dtype=np.float32), (2, 1))

    def with_curve(curve: np.ndarray) -> Comparison:
        return Comparison("", 20, {"own": Result(Runs(curve, {})), "adam": Result(Runs(adam, {}))})

    assert with_curve(adam).steps_to_adam("own") == 20
    fast = np.full((2, 20), 0.5, np.float32)
    fast[:, :5] = 10
    # Adam's last two steps have a mean of 1.24; the mean of two steps is below that when both are 0.5.
    assert with_curve(fast).steps_to_adam("own") == 7
    assert with_curve(adam + 0.1).steps_to_adam("own") is None
    assert not with_curve(fast).failed("own")
    worse = fast.copy()
    worse[1, -2:] = 11
    assert with_curve(worse).failed("own")


def test_card_has_its_own_figures_and_those_of_the_tuned(comparison):
    found = card(comparison, "learned")
    assert (found["task"], found["steps"], found["seeds"]) == ("quadratic", STEPS, 2)
    assert found["tuned"].keys() == set(BASELINES)
    whole = summary(comparison)["optimizers"]
    assert found["own"]["mean_loss"] == whole["learned"]["mean_loss"]
    assert found["tuned"]["adam"]["learning_rate"] == whole["adam"]["learning_rate"]


def test_rows_are_ranked(comparison):
    losses = [row["mean_loss"] for row in rows(comparison)]
    assert losses == sorted(losses)
    assert len(losses) == 5


def test_training_step_is_loss_before_update():
    training = on_quadratic()
    theta = training.init_theta(jax.random.key(0))
    state = training.init(jax.random.key(1))
    after, loss = training.step(theta, state, jax.random.key(2))
    assert float(loss) == pytest.approx(float(0.5 * jnp.sum(state.params**2)))
    assert (after.params != state.params).all()
    assert dataclasses.replace(training, horizon=7).horizon == 7
