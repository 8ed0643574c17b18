"""The objectives, against an independent computation in NumPy."""

from __future__ import annotations

import dataclasses
import functools
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from inner_tasks import (
    OBJECTIVES,
    Objective,
    TaskDistribution,
    TaskSettings,
    Training,
    find_objective,
    find_task,
)
from inner_tasks.objectives import TrainingStep
from learned_opt import UserError, get_architecture
from meta_train.run.folder import read_metrics
from tests.marks import slow
from tests.meta_train.command import meta_train

SETTINGS = TaskSettings(hidden=(6,), batch_size=40, horizon=8)
TASK = find_task("digits-mlp").build(SETTINGS)
OPTIMIZER = get_architecture("sgdm")


@functools.cache
def unrolled(name: str) -> tuple[Training, list]:
    """The problem, and for each of its steps: state before, key, loss, state after."""
    problem = Training(TASK.load(None), TASK, OPTIMIZER, SETTINGS.horizon, find_objective(name, TASK))
    theta = problem.init_theta(jax.random.key(0)) | {"log_learning_rate": jnp.array([-1.5])}
    step = jax.jit(lambda problem, state, key: problem.step(theta, state, key))
    state, steps = problem.init(jax.random.key(1)), []
    for key in jax.random.split(jax.random.key(2), SETTINGS.horizon):
        after, loss = step(problem, state, key)
        steps.append((state, key, float(loss), after))
        state = after
    return problem, steps


def measured(params: dict, images: np.ndarray, labels: np.ndarray) -> tuple[float, float]:
    """Cross-entropy and accuracy of the network, in float64."""
    first, second = (
        {name: np.asarray(value, np.float64) for name, value in params[layer].items()}
        for layer in ("Dense_0", "Dense_1")
    )
    hidden = np.maximum(images @ first["kernel"] + first["bias"], 0)
    logits = hidden @ second["kernel"] + second["bias"]
    logits = logits - np.log(np.exp(logits).sum(axis=1, keepdims=True))
    right = logits[np.arange(len(labels)), labels]
    return -right.mean(), (logits.argmax(axis=1) == labels).mean()


def examples(problem: Training, split: str, key: jax.Array) -> tuple[np.ndarray, np.ndarray]:
    """The minibatch drawn with a key, standardised in NumPy."""
    images, labels = (np.asarray(part) for part in getattr(problem.data, split))
    chosen = np.asarray(jax.random.randint(key, (SETTINGS.batch_size,), 0, len(labels)))
    train = np.asarray(problem.data.train.images, np.float64)
    return (images[chosen] - train.mean()) / train.std(), labels[chosen]


@pytest.mark.parametrize("name", OBJECTIVES)
def test_against_numpy(name: str) -> None:
    problem, steps = unrolled(name)
    bound = 1.5 * np.log(10)

    def logarithmic(loss: float) -> float:
        return bound * np.log(1 + loss / (0.003 * bound)) / np.log(1 + 1 / 0.003)

    for number, (before, key, loss, after) in enumerate(steps, 1):
        last = number > 0.9 * SETTINGS.horizon  # the last tenth of eight steps is the eighth
        fresh = jax.random.fold_in(key, 2**32 - 1)
        own = measured(before.params, *examples(problem, "train", key))[0]
        expected = {
            "training-loss": own,
            "later-training-loss": measured(after.params, *examples(problem, "train", fresh))[0],
            "validation-loss": measured(after.params, *examples(problem, "validation", fresh))[0],
            "validation-accuracy": -measured(after.params, *examples(problem, "validation", fresh))[1],
            "final-loss": measured(after.params, *examples(problem, "train", fresh))[0]
            - measured(before.params, *examples(problem, "train", fresh))[0],
            "mean-and-end": (0.5 + 5 * last) * own,
            "mean-and-validation-end": 0.5 * own
            + 5 * last * measured(after.params, *examples(problem, "validation", fresh))[0],
            "log-mean-and-validation-end": 0.5 * logarithmic(own)
            + 5 * last * logarithmic(measured(after.params, *examples(problem, "validation", fresh))[0]),
        }[name]
        assert loss == pytest.approx(expected, abs=2e-5)


def test_the_objective_draws_with_no_key_that_a_task_makes_of_its_own() -> None:
    """Its key is neither the key of the step nor one into which `sample` may split that."""
    objective = Objective(lambda task, data, step, key: jax.random.key_data(key))
    problem = Training(TASK.load(None), TASK, OPTIMIZER, SETTINGS.horizon, objective)
    key, theta = jax.random.key(2), problem.init_theta(jax.random.key(0))
    _, measured_with = problem.step(theta, problem.init(jax.random.key(1)), key)
    own = [key[None], *(jax.random.split(key, n) for n in (2, 3, 1000))]
    own.append(jax.vmap(lambda i: jax.random.fold_in(key, i))(jnp.arange(1000)))
    keys = np.concatenate([jax.random.key_data(each) for each in own])
    assert not np.any(np.all(keys == measured_with, axis=1))


def test_the_network_learns_the_same_whatever_is_asked() -> None:
    final = [unrolled(name)[1][-1][3].params for name in OBJECTIVES]
    for other in final[1:]:
        jax.tree.map(np.testing.assert_array_equal, final[0], other)


def test_a_final_loss_that_is_not_finite_counts_as_the_greatest() -> None:
    problem, _ = unrolled("final-loss")
    theta = problem.init_theta(jax.random.key(0)) | {"log_learning_rate": jnp.array([np.log(1e30)])}
    state = problem.init(jax.random.key(1))
    _, first = problem.step(theta, state, jax.random.key(2))
    fresh = jax.random.fold_in(jax.random.key(2), 2**32 - 1)
    before = measured(state.params, *examples(problem, "train", fresh))[0]
    assert float(first) == pytest.approx(TASK.max_loss - before, rel=1e-5)


@pytest.mark.parametrize("name", ["mean-and-end", "mean-and-validation-end", "log-mean-and-validation-end"])
def test_losses_are_clipped_before_the_end_gets_its_weight(name: str) -> None:
    """A diverged loss counts as ``max_loss`` in every step; a non-finite loss is left for the estimator."""
    problem, _ = unrolled(name)
    assert problem.max_loss == pytest.approx(5.5 * TASK.max_loss)
    state = problem.init(jax.random.key(1))
    far = state._replace(params=jax.tree.map(lambda x: 1e3 * (x + 1), state.params))
    theta = problem.init_theta(jax.random.key(0)) | {"log_learning_rate": jnp.array([-20.0])}
    for taken, weight in ((0, 0.5), (7, 5.5)):
        _, loss = problem.step(theta, far._replace(steps=jnp.int32(taken)), jax.random.key(3))
        assert float(loss) == pytest.approx(weight * TASK.max_loss, rel=1e-5)
    broken = state._replace(params=jax.tree.map(lambda x: x * jnp.nan, state.params))
    assert not np.isfinite(problem.step(theta, broken, jax.random.key(3))[1])


def test_the_end_is_judged_by_training_examples_where_there_are_no_others() -> None:
    task = dataclasses.replace(TASK, sample_validation=None)
    both = [
        Training(TASK.load(None), task, OPTIMIZER, 1, find_objective(name, task))
        for name in ("mean-and-end", "mean-and-validation-end")
    ]
    theta = both[0].init_theta(jax.random.key(0))
    losses = [each.step(theta, each.init(jax.random.key(1)), jax.random.key(2))[1] for each in both]
    assert losses[0] == losses[1]


@pytest.mark.parametrize(
    "name", ["digits-mlp", *map(slow, ("text-mlp", "patches-autoencoder", "teacher-mlp", "digits-conv"))]
)
def test_validation_examples_are_those_of_the_validation_split(name: str) -> None:
    """For every task with validation examples, the mean over many minibatches equals its metrics."""
    distributed = find_task("small-tasks").build(find_task("small-tasks").settings)
    assert isinstance(distributed, TaskDistribution)
    task = next(task for member, task in distributed.members.items() if member.startswith(name))
    data, params = task.load(None), jax.jit(task.init)(jax.random.key(0))
    loss = jax.jit(jax.vmap(lambda key: task.loss(params, task.sample_validation(data, key))))
    losses = np.asarray(loss(jax.random.split(jax.random.key(1), 200)))
    expected = float(jax.jit(task.metrics)(params, data)["validation_loss"])
    near = float(5 * losses.std() / 200**0.5) + 0.02 * expected
    assert losses.mean() == pytest.approx(expected, abs=near)
    assert (task.accuracy is not None) == name.startswith("digits")
    if task.accuracy is not None:  # in the units of the member
        batch = task.sample_validation(data, jax.random.key(3))
        assert 0 <= float(task.accuracy(params, batch)) <= 1


@pytest.mark.parametrize("horizon", [10, 100, 120, 200, 300, 500, 10_000])
def test_the_end_has_half_of_the_weight(horizon: int) -> None:
    """With a loss of 1 at each step the sum is T."""

    def weighted(step: jax.Array) -> jax.Array:
        progress = (step + 1) / horizon
        inner = TrainingStep({}, {}, jnp.ones(()), progress)
        return OBJECTIVES["mean-and-end"].measure(TASK, (), inner, jax.random.key(0))

    total = jax.jit(lambda: jax.vmap(weighted)(jnp.arange(horizon)).sum())()
    assert float(total) == pytest.approx(horizon, rel=1e-5)


def test_what_a_task_lacks_is_said() -> None:
    with pytest.raises(UserError, match="unknown objective 'validation-los'.*did you mean 'validation-loss'"):
        find_objective("validation-los", TASK)
    text = find_task("text-mlp").build(SETTINGS)
    with pytest.raises(UserError, match="'validation-accuracy' needs a task with accuracy, which this"):
        find_objective("validation-accuracy", text)


FOR_ACCURACY = (
    "--optimizer sgdm --task.objective validation-accuracy --task.horizon 20 --estimator.truncation 5 "
    "--updates 4 --wandb disabled --run-dir"
)


@pytest.mark.slow
def test_a_schedule_is_tuned_for_validation_accuracy(tmp_path: Path, no_comparing: None) -> None:
    outcome = meta_train(FOR_ACCURACY, tmp_path / "run")
    assert outcome.code == 0, outcome.err
    losses = [line["loss"] for line in read_metrics(tmp_path / "run" / "metrics.jsonl")]
    assert all(-1 <= loss < 0 for loss in losses)


def test_an_accuracy_has_no_derivative(tmp_path: Path) -> None:
    refused = meta_train("--estimator tbptt", FOR_ACCURACY, tmp_path / "other")
    assert refused.code == 2 and "differentiable is False" in refused.err
    assert not (tmp_path / "other").exists()
