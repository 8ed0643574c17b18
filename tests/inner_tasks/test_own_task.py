"""Tasks from models and examples of one's own, against training loops written by hand."""

from __future__ import annotations

import importlib
import itertools
import re
import sys
from collections.abc import Callable, Iterator
from typing import Any

import equinox as eqx
import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import nnx

from inner_tasks import InnerState, Task, Training, Variables, make_task
from inner_tasks.datasets.in_memory import in_memory
from learned_opt import LearnedOptimizer, UserError
from meta_train.estimators import pes

RATE = 0.1
SGD = LearnedOptimizer(
    init_theta=lambda key, blocks: jnp.float32(RATE),
    init=lambda params: jax.tree.map(jnp.zeros_like, params),  # shows which arrays it was given
    update=lambda rate, gradients, seen, params: (jax.tree.map(lambda g: -rate * g, gradients), seen),
)
RNG = np.random.RandomState(0)
INPUTS, LABELS = RNG.randn(40, 5).astype(np.float32), RNG.randint(0, 3, 40)
SIZES = {"batch_size": 8, "horizon": 3}


def cross_entropy(logits: jax.Array, labels: jax.Array) -> jax.Array:
    return optax.softmax_cross_entropy_with_integer_labels(logits, labels).mean()


def plain_init(key: jax.Array) -> dict[str, jax.Array]:
    return {"weights": jax.random.normal(key, (5, 3)), "bias": jnp.ones(3)}


def plain_loss(params: dict[str, jax.Array], batch: Any) -> jax.Array:
    inputs, labels = batch
    return cross_entropy(inputs @ params["weights"] + params["bias"], labels)


class Linen(nn.Module):
    """Batch norm and dropout; the outputs of training and evaluation differ."""

    rate: float = 0.5

    @nn.compact
    def __call__(self, x: jax.Array, train: bool) -> jax.Array:
        x = nn.BatchNorm(use_running_average=not train, momentum=0.9)(nn.Dense(4)(x))
        return nn.Dense(3)(nn.Dropout(self.rate, deterministic=not train)(x))


def linen_loss(model: Callable[..., jax.Array], batch: Any, train: bool) -> jax.Array:
    return cross_entropy(model(batch[0], train=train), batch[1])


class NNX(nnx.Module):
    def __init__(self, rate: float = 0.5, *, rngs: nnx.Rngs) -> None:
        self.first, self.last = nnx.Linear(5, 4, rngs=rngs), nnx.Linear(4, 3, rngs=rngs)
        self.norm, self.dropout = nnx.BatchNorm(4, momentum=0.9, rngs=rngs), nnx.Dropout(rate, rngs=rngs)

    def __call__(self, x: jax.Array) -> jax.Array:
        return self.last(self.dropout(self.norm(self.first(x))))


def nnx_loss(model: NNX, batch: Any) -> jax.Array:
    return cross_entropy(model(batch[0]), batch[1])


class Equinox(eqx.Module):
    first: eqx.nn.Linear
    norm: eqx.nn.BatchNorm
    dropout: eqx.nn.Dropout
    last: eqx.nn.Linear
    offsets: jax.Array  # integers, which are not trained
    activation: Callable[[jax.Array], jax.Array]  # a new function for every module

    def __init__(self, key: jax.Array, rate: float = 0.5) -> None:
        self.first, self.last = eqx.nn.Linear(5, 4, key=key), eqx.nn.Linear(4, 3, key=key)
        self.norm, self.dropout = eqx.nn.BatchNorm(4, "batch", mode="batch"), eqx.nn.Dropout(rate)
        self.offsets, self.activation = jnp.arange(3), lambda x: x

    def __call__(self, x: jax.Array, state: eqx.nn.State, key: jax.Array | None) -> Any:
        x, state = self.norm(self.activation(self.first(x)), state)
        return self.last(self.dropout(x, key=key)) + self.offsets, state


def equinox_outputs(model: Equinox, inputs: jax.Array, state: eqx.nn.State, key: jax.Array | None) -> Any:
    keys = None if key is None else jax.random.split(key, len(inputs))
    over = (0, None, None if key is None else 0)
    return jax.vmap(model, axis_name="batch", in_axes=over, out_axes=(0, None))(inputs, state, keys)


def equinox_loss(model: Equinox, batch: Any, state: eqx.nn.State, key: jax.Array | None) -> Any:
    logits, state = equinox_outputs(model, batch[0], state, key)
    return cross_entropy(logits, batch[1]), state


MODELS = {
    "plain": (plain_init, plain_loss),
    "linen": (Linen(), linen_loss),
    "nnx": (NNX, nnx_loss),
    "equinox": (eqx.nn.make_with_state(Equinox), equinox_loss),
}


def task_of(kind: str, **settings: Any) -> Task:
    model, loss = MODELS[kind]
    return make_task(model, loss, (INPUTS, LABELS), (INPUTS[:19], LABELS[:19]), **SIZES, **settings)


def trained(task: Task) -> tuple[InnerState, list[Any], list[jax.Array]]:
    """Three steps with SGD: the state, the minibatches and the losses."""
    training = Training(task.load(None), task, SGD, task.horizon)
    state, batches, losses = training.init(jax.random.key(0)), [], []
    step = jax.jit(lambda training, *inputs: training.step(*inputs))
    for key in jax.random.split(jax.random.key(1), 3):
        batches.append(task.sample(training.data, key))
        state, loss = step(training, jnp.float32(RATE), state, key)
        losses.append(loss)
    return state, batches, losses


def close(one: Any, other: Any) -> None:
    one, other = jax.tree.leaves(one), jax.tree.leaves(other)
    assert len(one) == len(other) > 0
    for a, b in zip(one, other, strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-6)


def sgd(params: Any, gradients: Any) -> Any:
    return jax.tree.map(lambda p, g: p - RATE * g, params, gradients)


def test_plain_functions() -> None:
    state, batches, losses = trained(task_of("plain"))
    params = plain_init(jax.random.key(0))
    for batch, loss in zip(batches, losses, strict=True):
        expected, gradients = jax.value_and_grad(plain_loss)(params, batch.examples)
        assert loss == pytest.approx(float(expected), rel=1e-5)
        params = sgd(params, gradients)
    close(state.params, params)


def test_linen_with_batch_norm() -> None:
    """Parameters, batch statistics and losses are those of the usual loop over ``apply``."""
    module = Linen(rate=0.0)
    task = make_task(module, linen_loss, (INPUTS, LABELS), (INPUTS[:19], LABELS[:19]), **SIZES)
    state, batches, losses = trained(task)
    variables = task.init(jax.random.key(0))
    params, statistics = variables.params, variables.state["batch_stats"]
    close(statistics, module.init(jax.random.key(9), INPUTS, train=False)["batch_stats"])

    def loss_of(params: Any, statistics: Any, batch: Any) -> Any:
        own = {"params": params, "batch_stats": statistics}
        logits, changed = module.apply(own, batch[0], train=True, mutable=["batch_stats"])
        return cross_entropy(logits, batch[1]), changed["batch_stats"]

    for batch, loss in zip(batches, losses, strict=True):
        (expected, statistics), gradients = jax.value_and_grad(loss_of, has_aux=True)(
            params, statistics, batch.examples
        )
        assert loss == pytest.approx(float(expected), rel=1e-5)
        params = sgd(params, gradients)
    close(state.params, Variables(params, {"batch_stats": statistics}))
    logits = module.apply({"params": params, "batch_stats": statistics}, INPUTS[:19], train=False)
    measured = task.metrics(state.params, task.load(None))
    assert measured.keys() == {"validation_loss"}
    close(measured["validation_loss"], cross_entropy(logits, LABELS[:19]))


def test_nnx_with_batch_norm() -> None:
    """Likewise for the usual loop with ``nnx.value_and_grad``."""
    make = lambda rngs: NNX(0.0, rngs=rngs)  # noqa: E731
    task = make_task(make, nnx_loss, (INPUTS, LABELS), (INPUTS[:19], LABELS[:19]), **SIZES)
    state, batches, losses = trained(task)
    model = make(nnx.Rngs(jax.random.key(0)))
    model.train()
    for batch, loss in zip(batches, losses, strict=True):
        expected, gradients = nnx.value_and_grad(nnx_loss)(model, batch.examples)
        assert loss == pytest.approx(float(expected), rel=1e-5)
        nnx.update(model, sgd(nnx.state(model, nnx.Param), gradients))
    close(state.params.params, nnx.to_pure_dict(nnx.state(model, nnx.Param)))
    close(state.params.state, nnx.to_pure_dict(nnx.state(model, nnx.BatchStat)))
    model.eval()
    measured = task.metrics(state.params, task.load(None))["validation_loss"]
    close(measured, nnx_loss(model, (INPUTS[:19], LABELS[:19])))


def test_equinox_with_batch_norm() -> None:
    """Likewise for the usual loop with ``eqx.filter_value_and_grad``; integers are not trained."""
    make = eqx.nn.make_with_state(lambda key: Equinox(key, rate=0.0))
    task = make_task(make, equinox_loss, (INPUTS, LABELS), (INPUTS[:19], LABELS[:19]), **SIZES)
    state, batches, losses = trained(task)
    model, statistics = make(jax.random.key(0))
    for batch, loss in zip(batches, losses, strict=True):
        (expected, statistics), gradients = eqx.filter_value_and_grad(equinox_loss, has_aux=True)(
            model, batch.examples, statistics, jax.random.key(0)
        )
        assert loss == pytest.approx(float(expected), rel=1e-5)
        model = eqx.apply_updates(model, jax.tree.map(lambda g: -RATE * g, gradients))
    close(state.params.params, eqx.filter(model, eqx.is_inexact_array))
    close(state.params.state, statistics)
    logits, _ = equinox_outputs(eqx.nn.inference_mode(model), INPUTS[:19], statistics, None)
    measured = task.metrics(state.params, task.load(None))["validation_loss"]
    close(measured, cross_entropy(logits, LABELS[:19]))


def test_an_equinox_module_without_state() -> None:
    """Its parameters alone are the parameters of the task, and evaluation is in inference mode."""

    def loss(model: eqx.nn.Sequential, batch: Any, key: jax.Array | None, train: bool) -> jax.Array:
        assert train == (key is not None) == (not model[1].inference)
        keys = None if key is None else jax.random.split(key, len(batch[0]))
        return cross_entropy(
            jax.vmap(lambda x, key: model(x, key=key), in_axes=(0, None if key is None else 0))(
                batch[0], keys
            ),
            batch[1],
        )

    make = lambda key: eqx.nn.Sequential([eqx.nn.Linear(5, 3, key=key), eqx.nn.Dropout(0.5)])  # noqa: E731
    task = make_task(make, loss, (INPUTS, LABELS), (INPUTS, LABELS), **SIZES)
    params = task.init(jax.random.key(2))
    assert task.loss_and_state is None
    assert [x.shape for x in jax.tree.leaves(params)] == [(3, 5), (3,)]
    expected = cross_entropy(jax.vmap(make(jax.random.key(2))[0])(INPUTS), LABELS)
    close(task.metrics(params, task.load(None))["validation_loss"], expected)


@pytest.mark.parametrize("kind", ["linen", "nnx", "equinox"])
def test_dropout_follows_the_key_of_the_step(kind: str) -> None:
    task = task_of(kind)
    params, batch = task.init(jax.random.key(0)), task.sample(task.load(None), jax.random.key(1))
    loss = jax.jit(task.loss)
    other = batch._replace(key=jax.random.key(7))
    assert loss(params, batch) == loss(params, batch) != loss(params, other)
    # Batches for validation have no key, and evaluation is deterministic.
    assert task.sample_validation is not None
    assert task.sample_validation(task.load(None), jax.random.key(3)).key is None
    evaluated = batch._replace(key=None)
    assert loss(params, evaluated) == loss(params, evaluated) != loss(params, batch)


@pytest.mark.parametrize("kind", ["linen", "nnx", "equinox"])
def test_the_optimizer_does_not_see_the_state(kind: str) -> None:
    task = task_of(kind)
    training = Training(task.load(None), task, SGD, 3)
    state = training.init(jax.random.key(0))
    assert isinstance(state.params, Variables)
    assert jax.tree.structure(state.optimizer) == jax.tree.structure(state.params.params)
    assert sum(x.size for x in jax.tree.leaves(state.params.params)) == 5 * 4 + 4 + 4 + 4 + 4 * 3 + 3
    counted = LearnedOptimizer(lambda key, blocks: jnp.zeros(blocks), SGD.init, SGD.update)
    assert Training(None, task, counted, 3).init_theta(jax.random.key(0)).shape == (6,)


@pytest.mark.parametrize("kind", MODELS)
def test_episodes_begin_differently(kind: str) -> None:
    task = task_of(kind)
    one, same, other = (jax.tree.leaves(task.init(jax.random.key(seed))) for seed in (0, 0, 1))
    close(one, same)
    assert any((a != b).any() for a, b in zip(one, other, strict=True))


@pytest.mark.parametrize("kind", ["plain", "linen"])
def test_weight_decay(kind: str) -> None:
    """It adds w times each matrix to its gradient; vectors and evaluation stay as they are."""
    plain, decayed = task_of(kind), task_of(kind, weight_decay=0.3)
    data, params = plain.load(None), plain.init(jax.random.key(0))
    batch = plain.sample(data, jax.random.key(1))
    gradients, with_decay = (jax.grad(task.loss)(params, batch) for task in (plain, decayed))
    if isinstance(params, Variables):
        params, gradients, with_decay = params.params, gradients.params, with_decay.params
    close(with_decay, jax.tree.map(lambda p, g: g + 0.3 * p * (p.ndim > 1), params, gradients))
    variables = plain.init(jax.random.key(0))
    assert plain.metrics(variables, data) == decayed.metrics(variables, data)
    assert decayed.loss(variables, batch) > plain.loss(variables, batch)


def test_a_module_with_several_methods() -> None:
    """Each call may be of another method; all of its parameters are made, and are trained."""

    class Autoencoder(nn.Module):
        def setup(self) -> None:
            self.encoder, self.decoder = nn.Dense(2), nn.Dense(5)

        def encode(self, x: jax.Array) -> jax.Array:
            return self.encoder(x)

        def decode(self, code: jax.Array) -> jax.Array:
            return self.decoder(code)

    def loss(model: Any, x: jax.Array, key: jax.Array | None) -> jax.Array:
        code = model(x, method="encode")
        noise = 0.0 if key is None else jax.random.normal(key, code.shape)
        return jnp.mean((model(code + noise, method="decode") - x) ** 2)

    task = make_task(Autoencoder(), loss, INPUTS, **SIZES)
    params = task.init(jax.random.key(0))
    assert jax.tree.map(jnp.shape, params) == {
        "encoder": {"kernel": (5, 2), "bias": (2,)},
        "decoder": {"kernel": (2, 5), "bias": (5,)},
    }
    gradients = jax.grad(task.loss)(params, task.sample(task.load(None), jax.random.key(1)))
    assert all((g != 0).any() for g in jax.tree.leaves(gradients))
    assert task.metrics(params, task.load(None)) == {} and task.sample_validation is None


def test_plain_functions_with_state() -> None:
    """The state is what the loss returns: here the number of the step."""

    def init(key: jax.Array) -> Any:
        return {"x": jax.random.normal(key, (2,))}, {"steps": jnp.zeros((), jnp.int32)}

    def loss(params: Any, batch: jax.Array, state: Any) -> Any:
        return jnp.sum((params["x"] - batch.mean(0)) ** 2) / (1 + state["steps"]), {
            "steps": state["steps"] + 1
        }

    points = INPUTS[:, :2]
    task = make_task(init, loss, points, points, **SIZES)
    state, _, _ = trained(task)
    assert state.params.state == {"steps": 3}
    x = np.asarray(state.params.params["x"])
    expected = np.mean([np.sum((x - batch.mean(0)) ** 2) / 4 for batch in np.split(points, 5)])
    close(task.metrics(state.params, task.load(None))["validation_loss"], expected)


def test_metrics_are_means_over_all_validation_examples() -> None:
    """Also if their number is not a multiple of the batch size, or is smaller than it."""

    def accuracy(params: Any, batch: Any) -> jax.Array:
        return jnp.mean(jnp.argmax(batch[0] @ params["weights"] + params["bias"], -1) == batch[1])

    params = plain_init(jax.random.key(3))
    for count in (5, 16, 19):
        held_out = INPUTS[:count], LABELS[:count]
        task = make_task(plain_init, plain_loss, (INPUTS, LABELS), held_out, accuracy=accuracy, **SIZES)
        measured = task.metrics(params, task.load(None))
        close(measured["validation_loss"], plain_loss(params, held_out))
        close(measured["validation_accuracy"], accuracy(params, held_out))
        assert task.accuracy is not None and task.sample_validation is not None
        batch = task.sample_validation(task.load(None), jax.random.key(0))
        assert task.accuracy(params, batch) == accuracy(params, batch.examples)


def test_minibatches_are_examples() -> None:
    """All are drawn, and inputs stay with their labels."""
    task = make_task(plain_init, plain_loss, (INPUTS, LABELS), batch_size=2_000)
    inputs, labels = task.sample(task.load(None), jax.random.key(0)).examples
    rows = [int(np.flatnonzero((row == INPUTS).all(1))[0]) for row in np.asarray(inputs)]
    assert set(rows) == set(range(40))
    np.testing.assert_array_equal(labels, LABELS[rows])
    assert np.bincount(rows).max() < 100  # 50 on average, plus or minus 7


def test_max_loss() -> None:
    """1.5 times the loss of a new model on the first examples."""
    first = INPUTS[:8], LABELS[:8]
    expected = 1.5 * plain_loss(plain_init(jax.random.key(0)), first)
    assert task_of("plain").max_loss == pytest.approx(float(expected), rel=5e-3)
    assert task_of("plain", max_loss=7.0).max_loss == 7.0
    assert task_of("plain", max_loss=None).max_loss is None
    with pytest.raises(UserError, match=r"the loss of a new model is -.*give max_loss"):
        make_task(plain_init, lambda p, batch: -plain_loss(p, batch), (INPUTS, LABELS))


@pytest.mark.parametrize("kind", ["nnx", "equinox"])
def test_meta_gradients(kind: str) -> None:
    """An estimator unrolls it, restarts included, with the state in its particles."""
    task = task_of(kind)
    problem = Training(task.load(None), task, SGD, task.horizon)
    estimator = pes(problem, sigma=0.01, truncation=2)
    state = estimator.init(jax.random.key(0), jnp.float32(RATE), 0.0)
    estimate = jax.jit(estimator.estimate)
    for number in range(3):
        gradient, state, info = estimate(jnp.float32(RATE), state, jax.random.key(number))
        assert jnp.isfinite(gradient) and gradient != 0
        assert info["loss"] > 0


# Iterables.

EXAMPLES = [{"x": INPUTS[i].tolist(), "label": int(LABELS[i])} for i in range(40)]


class HuggingFace:
    """Like a data set of Hugging Face: it has a shape and columns, and gives dictionaries of lists."""

    shape = (40, 2)

    def __iter__(self) -> Iterator[dict[str, Any]]:
        return iter(EXAMPLES)


class Indexed:
    """Like a data set of PyTorch: it has only indices."""

    def __getitem__(self, index: int) -> tuple[np.ndarray, int]:
        return INPUTS[index], LABELS[index]


def test_iterables_of_examples() -> None:
    read = in_memory(HuggingFace(), "training", batched=False, max_examples=100)
    np.testing.assert_array_equal(read["x"], INPUTS)
    np.testing.assert_array_equal(read["label"], LABELS)
    assert (read["x"].dtype, read["label"].dtype) == (np.float32, np.int32)
    inputs, labels = in_memory(Indexed(), "training", batched=False, max_examples=100)
    np.testing.assert_array_equal(inputs, INPUTS)
    np.testing.assert_array_equal(labels, LABELS)
    tokens = in_memory(([1, 2, 3] for _ in range(4)), "training", batched=False, max_examples=100)
    np.testing.assert_array_equal(tokens, [[1, 2, 3]] * 4)


def test_iterables_of_batches() -> None:
    """Of any size; a batch may be a list of arrays, as PyTorch's loader gives them."""
    parts = ([INPUTS[i : i + 12], LABELS[i : i + 12]] for i in range(0, 40, 12))
    inputs, labels = in_memory(parts, "training", batched=True, max_examples=100)
    np.testing.assert_array_equal(inputs, INPUTS)
    np.testing.assert_array_equal(labels, LABELS)
    columns = iter([{"x": INPUTS[:3].tolist(), "label": [4, 5, 6]}])
    read = in_memory(columns, "training", batched=True, max_examples=100)
    assert (read["x"].shape, read["label"].tolist()) == ((3, 5), [4, 5, 6])


@pytest.mark.parametrize("batched", [False, True])
def test_no_more_is_read_than_necessary(batched: bool) -> None:
    """Data sets that repeat for ever end at ``max_examples``, and nothing after that is read."""
    endless = itertools.count()
    source = ({"x": np.full((4, 2) if batched else 2, number)} for number in endless)
    read = in_memory(source, "training", batched=batched, max_examples=10)["x"]
    np.testing.assert_array_equal(read[:, 0], np.arange(10) // 4 if batched else np.arange(10))
    assert next(endless) == (3 if batched else 10)


def test_tasks_of_iterables_and_arrays_are_the_same() -> None:
    def loss(params: Any, batch: Any) -> jax.Array:
        return plain_loss(params, (batch["x"], batch["label"]))

    of_iterable = make_task(plain_init, loss, iter(EXAMPLES), iter(EXAMPLES[:3]), **SIZES)
    arrays = {"x": INPUTS.astype(np.float64), "label": LABELS}
    of_arrays = make_task(plain_init, loss, arrays, {k: v[:3] for k, v in arrays.items()}, **SIZES)
    close(of_iterable.load(None), of_arrays.load(None))
    states = [trained(task)[0] for task in (of_iterable, of_arrays)]
    jax.tree.map(np.testing.assert_array_equal, *states)


@pytest.mark.parametrize(
    ("source", "says"),
    [
        ((), "there are no training examples"),
        (iter(()), "there are no training examples; an iterator that was used before gives none"),
        (7, "the training examples are of the type int; give an array"),
        ((INPUTS, LABELS[:3]), "have the shapes (40, 5), (3,); the first axis of each must be the number"),
        (np.zeros(()), "have the shapes ()"),
        (INPUTS[:0], "have the shapes (0, 5)"),
        ({"x": INPUTS, "name": np.array(["a"] * 40)}, "['name'], which are not numbers but of the dtype <U1"),
        ([{"text": "a"}], "['text'], which are not numbers"),
        (
            [[1, 2], [3]],
            "number 2 of the training examples or batches has the shapes (1,), and the first has (2,)",
        ),
        ([{"x": [[1, 2], [3]]}], "['x'], which cannot be made an array"),
    ],
    ids=["empty", "used", "number", "lengths", "scalar", "no-rows", "column", "text", "shapes", "ragged"],
)
def test_examples_that_are_refused(source: Any, says: str) -> None:
    with pytest.raises(UserError, match=re.escape(says)):
        in_memory(source, "training", batched=False, max_examples=100)


@pytest.mark.parametrize(
    ("model", "loss", "says"),
    [
        (NNX(rngs=nnx.Rngs(0)), nnx_loss, "lambda rngs: Network(..., rngs=rngs)"),
        (eqx.nn.Linear(5, 3, key=jax.random.key(0)), plain_loss, "lambda key: Network(..., key=key)"),
        ({"weights": INPUTS}, plain_loss, "the model is of the type dict; give a Flax Linen module"),
        (plain_init, lambda p, batch: batch[0] @ p["weights"], "must return a scalar of floats"),
        (plain_init, lambda p, batch: batch[1].sum(), "must return a scalar of floats"),
    ],
    ids=["nnx", "equinox", "dict", "vector", "integer"],
)
def test_models_that_are_refused(model: Any, loss: Any, says: str) -> None:
    with pytest.raises(UserError, match=re.escape(says)):
        make_task(model, loss, (INPUTS, LABELS))


@pytest.mark.parametrize("setting", ["batch_size", "horizon", "max_examples"])
def test_numbers_that_are_refused(setting: str) -> None:
    with pytest.raises(UserError, match=f"{setting} is 0; it must be at least 1"):
        make_task(plain_init, plain_loss, (INPUTS, LABELS), **{setting: 0})  # type: ignore[arg-type]


def test_a_loss_that_is_no_function() -> None:
    with pytest.raises(UserError, match="the loss is of the type str"):
        make_task(plain_init, "mse", (INPUTS, LABELS))  # type: ignore[arg-type]


def test_examples_of_mixed_numbers_have_a_dtype_of_jax() -> None:
    found = in_memory([1, 2.5, 3], "training", batched=False, max_examples=100)
    assert found.dtype == np.float32


def test_validation_examples_of_another_form() -> None:
    with pytest.raises(
        UserError, match=r"has the form .*float32\[5\].*, but a validation example .*float32\[4\]"
    ):
        make_task(plain_init, plain_loss, (INPUTS, LABELS), (INPUTS[:, :4], LABELS))


def test_equinox_is_not_needed(monkeypatch: pytest.MonkeyPatch) -> None:
    """With None in its place, an import of Equinox fails."""
    for name in [name for name in sys.modules if name.partition(".")[0] == "equinox"]:
        monkeypatch.setitem(sys.modules, name, None)
    monkeypatch.delitem(sys.modules, "inner_tasks.models.equinox", raising=False)
    with pytest.raises(ImportError):
        importlib.import_module("inner_tasks.models.equinox")
    for kind in ("plain", "linen", "nnx"):
        task_of(kind)
