"""The inner tasks: networks, data, metrics and training, against NumPy."""

from __future__ import annotations

import math
from collections import Counter
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import learned_opt
from inner_tasks import InnerState, Registration, Task, TaskSettings, Training, find_task, task, task_names
from inner_tasks.datasets import Dataset, load_dataset
from inner_tasks.tasks.images import ImageBatch
from learned_opt import LearnedOptimizer, UserError
from meta_train.estimators.window import unroll
from tests.marks import slow
from tests.meta_train.command import against, lines, meta_train, start

SGD = LearnedOptimizer(
    init_theta=lambda key, blocks: jnp.float32(0.1),
    init=lambda params: jnp.zeros((), jnp.int32),
    update=lambda rate, gradients, count, params: (
        jax.tree.map(lambda g: -rate * g, gradients),
        count + 1,
    ),
)


def build(name: str, settings: TaskSettings | None = None) -> Task:
    registration = find_task(name)
    return registration.build(settings or registration.settings)


def shapes(made: Task) -> list[tuple[int, ...]]:
    """Shapes of the weights and biases, layer by layer."""
    params = jax.eval_shape(made.init, jax.random.key(0))
    return [params[name][kind].shape for name in sorted(params) for kind in ("kernel", "bias")]


class NumPyMLP:
    """The network reimplemented: ReLU, softmax cross-entropy, and their gradients."""

    def __init__(self, params: dict) -> None:
        self.layers = [
            [np.array(params[name][kind], np.float64) for kind in ("kernel", "bias")]
            for name in sorted(params)
        ]

    def forward(self, images: np.ndarray) -> list[np.ndarray]:
        """Inputs of every layer, and the logits."""
        values = [images]
        for weights, bias in self.layers:
            values.append(np.maximum(values[-1], 0) if len(values) > 1 else values[-1])
            values[-1] = values[-1] @ weights + bias
        return values

    def losses(self, images: np.ndarray, labels: np.ndarray) -> np.ndarray:
        logits = self.forward(images)[-1]
        return np.log(np.exp(logits).sum(1)) - logits[np.arange(len(labels)), labels]

    def sgd(self, images: np.ndarray, labels: np.ndarray, rate: float) -> None:
        *values, logits = self.forward(images)
        delta = np.exp(logits) / np.exp(logits).sum(1, keepdims=True)
        delta[np.arange(len(labels)), labels] -= 1
        delta /= len(labels)
        for number in reversed(range(len(self.layers))):
            weights, bias = self.layers[number]
            inputs = np.maximum(values[number], 0) if number else values[0]
            before = (delta @ weights.T) * (values[number] > 0)
            weights -= rate * inputs.T @ delta
            bias -= rate * delta.sum(0)
            delta = before


@pytest.fixture(scope="module")
def digits() -> Dataset:
    return load_dataset("digits")


@pytest.mark.parametrize(
    ("name", "layers", "parameters"),
    [
        ("digits-mlp", [64, 32, 10], 2_410),
        ("mnist-mlp", [784, 32, 10], 25_450),
        slow("fashion-mnist-mlp", [784, 32, 10], 25_450),
        slow("cifar10-mlp", [3072, 128, 128, 10], 411_146),
    ],
)
def test_networks_by_default(name: str, layers: list[int], parameters: int) -> None:
    made = build(name)
    expected = [shape for a, b in zip(layers, layers[1:], strict=False) for shape in ((a, b), (b,))]
    assert shapes(made) == expected
    assert sum(map(math.prod, expected)) == parameters
    assert made.horizon == 200
    # A fresh network on inputs of unit variance guesses: its loss is a little above ln 10.
    inputs, labels = jax.random.normal(jax.random.key(1), (200, layers[0])), jnp.arange(200) % 10
    loss = made.loss(made.init(jax.random.key(2)), ImageBatch(inputs, labels))
    assert math.log(10) - 0.1 < loss < math.log(10) + 0.8
    assert loss < made.max_loss


def test_a_fresh_network_guesses_digits(digits: Dataset) -> None:
    made = build("digits-mlp")
    data = made.load(None)
    measured = [made.metrics(made.init(jax.random.key(seed)), data) for seed in range(5)]
    assert np.mean([m["validation_loss"] for m in measured]) == pytest.approx(math.log(10), abs=0.5)
    assert np.mean([m["validation_accuracy"] for m in measured]) == pytest.approx(0.1, abs=0.06)


@pytest.mark.parametrize("hidden", [(), (7,), (12, 5, 3)])
def test_settings_are_respected(hidden: tuple[int, ...]) -> None:
    made = build("digits-mlp", TaskSettings(hidden, batch_size=3, horizon=17))
    widths = [64, *hidden, 10]
    assert shapes(made) == [s for a, b in zip(widths, widths[1:], strict=False) for s in ((a, b), (b,))]
    assert made.horizon == 17
    batch = made.sample(made.load(None), jax.random.key(0))
    assert (batch.images.shape, batch.labels.shape) == ((3, 64), (3,))


def test_minibatches_are_standardised_training_examples(digits: Dataset) -> None:
    made = build("digits-mlp", TaskSettings(batch_size=30_000))
    batch = made.sample(made.load(None), jax.random.key(0))
    mean, std = digits.train.images.mean(dtype=np.float64), digits.train.images.std(dtype=np.float64)
    raw = np.asarray(batch.images, np.float64) * std + mean
    np.testing.assert_allclose(raw, raw.round(), atol=1e-5)

    def examples(images: np.ndarray, labels: np.ndarray) -> Counter[tuple[bytes, int]]:
        return Counter((x.astype(np.uint8).tobytes(), int(y)) for x, y in zip(images, labels, strict=True))

    drawn, train = examples(raw.round(), np.asarray(batch.labels)), examples(*digits.train)
    # Each of the 1,400 is drawn about 21 times, plus or minus 5; nothing else is drawn.
    assert drawn.keys() == train.keys()
    assert max(drawn.values()) < 50
    # All examples together have mean 0 and variance 1, the draws approximately.
    assert batch.images.mean() == pytest.approx(0, abs=0.01)
    assert batch.images.std() == pytest.approx(1, abs=0.01)


def test_batches_follow_the_key(digits: Dataset) -> None:
    made = build("digits-mlp")
    data = made.load(None)
    one, same, other = (made.sample(data, jax.random.key(seed)).images for seed in (0, 0, 1))
    assert np.array_equal(one, same) and not np.array_equal(one, other)


@pytest.mark.parametrize("hidden", [slow(()), slow((6,)), (8, 4)])
def test_loss_and_metrics_against_numpy(hidden: tuple[int, ...], digits: Dataset) -> None:
    made = build("digits-mlp", TaskSettings(hidden, batch_size=5))
    data, params = made.load(None), made.init(jax.random.key(3))
    plain = NumPyMLP(params)
    batch = made.sample(data, jax.random.key(4))
    expected = plain.losses(np.asarray(batch.images, np.float64), np.asarray(batch.labels)).mean()
    assert made.loss(params, batch) == pytest.approx(expected, rel=1e-5)

    measured = made.metrics(params, data)
    assert measured.keys() == {
        f"{split}_{name}" for split in ("validation", "test") for name in ("loss", "accuracy")
    }
    mean, std = digits.train.images.mean(dtype=np.float64), digits.train.images.std(dtype=np.float64)
    for name, split in (("validation", digits.validation), ("test", digits.test)):
        images, labels = (split.images - mean) / std, split.labels
        assert measured[f"{name}_loss"] == pytest.approx(plain.losses(images, labels).mean(), rel=1e-5)
        correct = plain.forward(images)[-1].argmax(1) == labels
        assert measured[f"{name}_accuracy"] == pytest.approx(correct.mean(), abs=1e-6)


@pytest.mark.parametrize("hidden", [slow(()), slow((6,)), (8, 4)])
def test_training_against_sgd_in_numpy(hidden: tuple[int, ...]) -> None:
    """The loss of a step is that of its minibatch before the update."""
    made = build("digits-mlp", TaskSettings(hidden, batch_size=7))
    training = Training(made.load(None), made, SGD, horizon=4)
    state = training.init(jax.random.key(5))
    plain = NumPyMLP(made.init(jax.random.key(5)))
    step = jax.jit(lambda training, *inputs: training.step(*inputs))
    for seed in range(4):
        key = jax.random.key(seed)
        batch = made.sample(training.data, key)
        images, labels = np.asarray(batch.images, np.float64), np.asarray(batch.labels)
        state, loss = step(training, jnp.float32(0.5), state, key)
        assert loss == pytest.approx(plain.losses(images, labels).mean(), rel=1e-4)
        plain.sgd(images, labels, 0.5)
    assert state.optimizer == 4
    for name, (weights, bias) in zip(sorted(state.params), plain.layers, strict=True):
        np.testing.assert_allclose(state.params[name]["kernel"], weights, rtol=1e-3, atol=1e-5)
        np.testing.assert_allclose(state.params[name]["bias"], bias, rtol=1e-3, atol=1e-5)


def test_windows_that_do_not_divide_the_episode() -> None:
    """Windows of 4, 4 and 2 steps end in the state after 10 steps, and their losses add up."""
    made = build("digits-mlp", TaskSettings((6,), batch_size=7, horizon=10))
    training = Training(made.load(None), made, SGD, made.horizon)
    theta, state = jnp.float32(0.5), training.init(jax.random.key(0))
    window = jax.jit(unroll, static_argnums=5)
    ends, total = state, 0.0
    for start_of, seed in ((0, 1), (4, 2), (8, 3)):
        result = window(training, theta, ends, jnp.int32(start_of), jax.random.key(seed), 4)
        ends, total = result.state, total + result.loss

    step, expected = jax.jit(lambda training, *inputs: training.step(*inputs)), 0.0
    for seed, steps in ((1, 4), (2, 4), (3, 2)):
        for key in jax.random.split(jax.random.key(seed), 4)[:steps]:
            state, loss = step(training, theta, state, key)
            expected += loss
    assert total == pytest.approx(float(expected), rel=1e-5)
    assert isinstance(ends, InnerState) and ends.optimizer == 10
    for a, b in zip(jax.tree.leaves(ends.params), jax.tree.leaves(state.params), strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-6)


# User-defined tasks.


MY_TASKS = """
import jax
import jax.numpy as jnp

from inner_tasks import Task, TaskSettings, register_task


@register_task("bowl", TaskSettings(horizon=6))
def bowl(settings: TaskSettings) -> Task:
    return Task(
        init=lambda key: {"x": jax.random.normal(key, (settings.batch_size,))},
        sample=lambda data, key: data + 0.1 * jax.random.normal(key),
        loss=lambda params, target: jnp.mean((params["x"] - target) ** 2),
        metrics=lambda params, data: {"distance": jnp.linalg.norm(params["x"] - data)},
        load=lambda data_dir: jnp.float32(3.0),
        horizon=settings.horizon,
    )
"""


def test_a_task_in_a_file_of_ones_own(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, own_registry: None
) -> None:
    (tmp_path / "my_tasks.py").write_text(MY_TASKS)
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(tmp_path)
    with against("adam"):
        outcome = meta_train(
            "--task my_tasks:bowl --task.batch-size 3 --updates 2 --estimator.truncation 4",
            "--estimator.particles 4 --evaluation.seeds 1 --evaluation.learning-rates 1",
            "--devices 1 --wandb disabled",
        )
    assert outcome.code == 0, outcome.err
    folder = Path("runs/bowl-1")
    assert f"{folder}: my_tasks:bowl (T 6), pes (sigma " in outcome.err
    assert [line["update"] for line in lines(folder)] == [1, 2]
    assert '"distance":' in (folder / "report" / "summary.json").read_text()
    assert learned_opt.read(folder).metadata["meta_training"]["task"] == {
        "name": "my_tasks:bowl",
        "hidden": [32],
        "batch_size": 3,
        "horizon": 6,
        "objective": "training-loss",
    }
    # A resumed run finds the task by the same name.
    assert "is finished" in meta_train("--resume", folder, "--task my_tasks:bowl").err


def test_the_file_is_found_where_the_command_is_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "my_tasks.py").write_text(MY_TASKS)
    monkeypatch.chdir(tmp_path)
    for name, says in (
        ("my_tasks:bowl", "--updates is 0; it must be at least 1"),
        ("my_tasks:bowls", "unknown task 'bowls'"),
    ):
        with start("--updates 0 --task", name) as child:
            _, said = child.communicate(timeout=120)
        assert (child.returncode, says in said) == (2, True)


def test_names(own_registry: None, monkeypatch: pytest.MonkeyPatch) -> None:
    assert task_names()[:4] == ["digits-mlp", "mnist-mlp", "fashion-mnist-mlp", "cifar10-mlp"]
    with pytest.raises(UserError, match="did you mean 'mnist-mlp'"):
        find_task("mnist")
    with pytest.raises(UserError, match="'my_missing' cannot be imported"):
        find_task("my_missing:task")
    made = build("digits-mlp")
    assert task.register_task("again", TaskSettings(horizon=3))(lambda settings: made)(TaskSettings()) is made
    assert find_task("again") == Registration(find_task("again").build, TaskSettings(horizon=3))
