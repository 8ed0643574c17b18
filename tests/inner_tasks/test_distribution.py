"""Tasks without a download, and distributions of tasks, against NumPy."""

from __future__ import annotations

import math
from pydoc_data.topics import topics

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from sklearn.datasets import load_sample_image

from inner_tasks import Task, TaskDistribution, TaskSettings, Training, find_task
from inner_tasks.networks import Conv
from inner_tasks.task import Data, Params
from inner_tasks.tasks.augmentation import reparametrised
from inner_tasks.tasks.images import autoencoder_task
from inner_tasks.tasks.small_tasks import KINDS, MEMBERS
from inner_tasks.tasks.teacher import teacher_task
from tests.inner_tasks.test_tasks import SGD, NumPyMLP, build


def parameters(task: Task) -> int:
    return sum(math.prod(p.shape) for p in jax.tree.leaves(jax.eval_shape(task.init, jax.random.key(0))))


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("mnist-conv", 9 * 16 + 16 + 9 * 16 * 32 + 32 + 32 * 10 + 10),
        ("cifar10-conv", 9 * 3 * 16 + 16 + 9 * 16 * 32 + 32 + 9 * 32 * 32 + 32 + 32 * 10 + 10),
        ("mnist-autoencoder", 784 * 128 + 128 + 2 * 128 * 32 + 32 + 128 + 128 * 784 + 784),
        ("text-mlp", 64 * 8 + 64 * 64 + 64 + 64 * 64 + 64),
        ("patches-autoencoder", 2 * (64 * 64 + 64) + 2 * 64 * 16 + 16 + 64),
        ("teacher-mlp", 64 * 64 + 64 + 64 * 10 + 10),
    ],
)
def test_number_of_parameters(name: str, expected: int) -> None:
    assert parameters(build(name)) == expected


@pytest.mark.parametrize("shape", [(8, 8), (7, 8), (5, 3), (28, 28), (1, 2)], ids=str)
def test_convolution_is_that_of_flax(shape: tuple[int, int]) -> None:
    x, key = jax.random.normal(jax.random.key(0), (2, *shape, 3)), jax.random.key(1)
    own, flax = Conv(4), nn.Conv(4, (3, 3), strides=2)
    params = own.init(key, x)
    jax.tree.map(np.testing.assert_array_equal, params, flax.init(key, x))
    params = jax.tree.map(lambda p: p + 0.1, params)
    np.testing.assert_allclose(own.apply(params, x), flax.apply(params, x), atol=1e-5)


def test_reconstruction_is_the_mean_squared_error() -> None:
    """With zero weights the network outputs zero, so the loss is the mean square of standardised pixels."""
    task = autoencoder_task("digits", TaskSettings((4,), batch_size=200, horizon=1))
    data = task.load(None)
    silent = jax.tree.map(jnp.zeros_like, task.init(jax.random.key(0)))
    batch = task.sample(data, jax.random.key(1))
    assert task.loss(silent, batch) == pytest.approx(np.mean(np.asarray(batch.images) ** 2), rel=1e-5)
    metrics = task.metrics(silent, data)
    assert metrics.keys() == {"validation_loss", "test_loss"}
    assert all(loss == pytest.approx(1, abs=0.1) for loss in metrics.values())


def test_held_out_tasks() -> None:
    registration = find_task("held-out")
    members = registration.build(registration.settings).members
    assert len(members) == 16
    sets = {"mnist": 7, "cifar10": 7, "source": 2}
    assert {name: sum(n.startswith(name) for n in members) for name in sets} == sets
    assert all(200 <= task.horizon <= 2000 for task in list(members.values())[:-1])
    assert members["mnist-mlp 64-64 relu, batch 32, 10,000 steps"].horizon == 10_000
    assert parameters(members["mnist-mlp without hidden layer, batch 256"]) == 784 * 10 + 10
    wide = members["cifar10-mlp 512 relu, batch 32"]
    assert parameters(wide) == 3072 * 512 + 512 + 512 * 10 + 10
    shorter = registration.build(TaskSettings(horizon=300)).members.values()
    assert max(task.horizon for task in shorter) == 300 and min(task.horizon for task in shorter) == 200


SUITES = {  # name -> task -> loss of an uninformed guess
    "development": {
        "text-transformer 2 blocks of 48, batch 16": math.log(64),
        "text-gru 64, batch 16": math.log(64),
        "digits-resnet 16-32 group norm, batch 64": math.log(10),
        "digits-residual 3 blocks of 64-128, batch 32": math.log(10),
        "patches-vae 128-16-128 relu, batch 64": 1,
        "coordinates-mlp 96-96-96 tanh, batch 128": 1,
        "patients-mlp 100-100 relu, batch 32": math.log(2),
        "words-bigram 800 words of 24, batch 128": math.log(800),
    },
    "held-out": {
        "source-transformer 2 blocks of 64, batch 16": math.log(64),
        "source-gru 96, batch 16": math.log(64),
    },
}


@pytest.mark.slow
@pytest.mark.parametrize(
    ("suite", "name"), [(suite, name) for suite, tasks in SUITES.items() for name in tasks]
)
def test_tasks_of_the_suites(suite: str, name: str) -> None:
    """The initial loss is that of an uninformed guess, and a few steps of Adam lower it."""
    registration, guess = find_task(suite), SUITES[suite][name]
    members = registration.build(registration.settings).members
    task, tx = members[name], optax.adam(1e-3)
    assert 10_000 < parameters(task) < 100_000
    data, batches = task.load(None), 30
    silent = jax.tree.map(lambda x: jnp.zeros(x.shape), jax.eval_shape(task.init, jax.random.key(0)))

    @jax.jit
    def train(params: Params, data: Data) -> tuple[jax.Array, jax.Array, dict[str, jax.Array]]:
        def step(carry: tuple, key: jax.Array) -> tuple[tuple, jax.Array]:
            params, state = carry
            batch = task.sample(data, key)
            loss, gradients = jax.value_and_grad(task.loss)(params, batch)
            updates, state = tx.update(gradients, state, params)
            return (optax.apply_updates(params, updates), state), (task.loss(silent, batch), loss)

        keys = jax.random.split(jax.random.key(2), batches)
        (params, _), (guesses, losses) = jax.lax.scan(step, (params, tx.init(params)), keys)
        return guesses, losses, task.metrics(params, data)

    guesses, losses, metrics = train(jax.jit(task.init)(jax.random.key(0)), data)
    assert guesses.mean() == pytest.approx(guess, rel=0.2)
    assert losses[-3:].mean() < losses[:3].mean()
    assert np.isfinite(metrics["validation_loss"])
    assert losses[0] < 3 * guess or "patients" in name  # its columns are badly scaled


def test_text_batches_are_stretches_of_the_text() -> None:
    task = build("text-mlp", TaskSettings((8,), batch_size=50, horizon=10))
    data = task.load(None)
    batch = task.sample(data, jax.random.key(3))
    text = " ".join(topics.values())
    letters = {}  # number -> character, for the numbers that mean a single character
    for number, character in zip(np.asarray(data.train)[:200_000], text, strict=False):
        letters.setdefault(int(number), set()).add(character)
    named = {number: next(iter(each)) for number, each in letters.items() if len(each) == 1}
    assert len(named) == 63  # all numbers except the one for rare characters
    assert named[0] == " "  # the most frequent
    found = 0
    for context, following in zip(np.asarray(batch.context), np.asarray(batch.following), strict=True):
        numbers = [*context.tolist(), int(following)]
        if all(number in named for number in numbers):
            assert "".join(named[number] for number in numbers) in text[:-20_000]
            found += 1
    assert found > 40
    assert data.validation.shape == (20_000,)
    loss = task.metrics(task.init(jax.random.key(0)), data)["validation_loss"]
    assert loss == pytest.approx(math.log(64), abs=0.5)


def test_patches_are_of_the_photograph() -> None:
    task = build("patches-autoencoder", TaskSettings((8,), batch_size=20, horizon=10))
    grey = load_sample_image("china.jpg").mean(axis=2)
    grey = (grey - grey.mean()) / grey.std()
    windows = np.lib.stride_tricks.sliding_window_view(grey, (8, 8)).reshape(-1, 64)
    for patch in np.asarray(task.sample(task.load(None), jax.random.key(1))):
        assert np.abs(windows - patch).max(axis=1).min() < 1e-5
    silent = jax.tree.map(jnp.zeros_like, task.init(jax.random.key(0)))
    many = build("patches-autoencoder", TaskSettings((8,), batch_size=5_000, horizon=10))
    batch = many.sample(many.load(None), jax.random.key(2))
    assert many.loss(silent, batch) == pytest.approx(1, abs=0.05)  # the variance of standardised pixels


def test_labels_are_those_of_the_teacher() -> None:
    task = teacher_task(20, 0.7, jax.nn.relu, TaskSettings((8,), batch_size=4_000, horizon=10))
    weights = task.load(None)
    batch = task.sample(weights, jax.random.key(5))
    inputs = np.asarray(batch.inputs, np.float64)
    logits = NumPyMLP(weights).forward(inputs)[-1]
    assert np.mean(logits.argmax(1) == batch.labels) > 0.999  # except for ties in the last bit
    deviations = inputs.std(0)
    np.testing.assert_allclose(deviations / deviations[0], np.arange(1, 21) ** -0.7, rtol=0.1)
    assert np.mean(inputs**2) == pytest.approx(1, rel=0.05)
    assert len(set(np.asarray(batch.labels).tolist())) >= 5


def test_reparametrised_task_is_the_same_task_in_other_units() -> None:
    """Parameters s times smaller have gradients s times larger: SGD with its rate over s^2 is the same."""
    scale, rate = 2.5, 0.1
    plain = build("digits-mlp", TaskSettings((16,), batch_size=32, horizon=10))
    scaled = reparametrised(plain, scale)
    data = plain.load(None)

    def losses(task: Task, rate: float) -> np.ndarray:
        training = Training(data, task, SGD, 10)
        state = training.init(jax.random.key(0))
        keys = jax.random.split(jax.random.key(1), 10)
        state, losses = jax.lax.scan(lambda s, key: training.step(jnp.float32(rate), s, key), state, keys)
        return np.append(losses, task.metrics(state.params, data)["validation_loss"])

    expected = losses(plain, rate)
    np.testing.assert_allclose(losses(scaled, rate / scale**2), expected, rtol=1e-4)
    assert np.abs(losses(scaled, rate) / expected - 1).max() > 0.1


def test_small_tasks() -> None:
    registration = find_task("small-tasks")
    distribution = registration.build(registration.settings)
    assert isinstance(distribution, TaskDistribution)
    assert len(distribution.members) == MEMBERS
    names = list(distribution.members)
    assert names == list(registration.build(registration.settings).members)
    assert all(sum(name.startswith(kind) for name in names) >= 3 for kind in KINDS)
    for task in distribution.members.values():
        assert 100 <= task.horizon <= 2000
        assert 100 < parameters(task) < 20_000
    horizons = [task.horizon for task in distribution.members.values()]
    assert min(horizons) < 300 and max(horizons) > 1500


def test_small_tasks_respect_their_settings() -> None:
    distribution = find_task("small-tasks").build(TaskSettings((8,), batch_size=8, horizon=12))
    assert {task.horizon for task in distribution.members.values()} == {12}
    names = " ".join(distribution.members)
    assert "batch 8," in names and "batch 9" not in names
