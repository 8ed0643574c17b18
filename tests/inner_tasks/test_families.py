"""Task families: the common and the individual properties of their members."""

from __future__ import annotations

import functools
import math
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from inner_tasks import (
    OBJECTIVES,
    FamilyTraining,
    Task,
    TaskFamily,
    TaskSettings,
    Training,
    find_task,
)
from inner_tasks.tasks.families.family import Variation, random_indices, repeated
from inner_tasks.tasks.general_tasks import FAMILIES
from learned_opt import LearnedOptimizer
from meta_train.estimators import pes
from tests.inner_tasks.test_tasks import SGD
from tests.marks import slow

SETTINGS = find_task("general-tasks").settings._replace(horizon=10_000)  # some episodes are longer than usual
GUESS = {  # parameters, and the loss of an uninformed guess
    "digits-mlp": (3_010, math.log(10)),
    "digits-resnet": (1_386, math.log(10)),
    "text-transformer": (3_504, math.log(32)),
    "text-gru": (2_000, math.log(32)),
    "autoencoder": (3_628, 1),
    "table": (737, 1),
    "teacher": (2_938, math.log(10)),
    "ratings": (2_016, 1),
}


@functools.cache
def family(name: str) -> TaskFamily:
    return FAMILIES[name](SETTINGS)


@functools.cache
def data(name: str) -> object:
    return family(name).load(None)


@functools.cache
def drawn(name: str, seed: int = 0) -> Variation:
    return jax.jit(family(name).draw)(jax.random.key(seed))


def plain(name: str, seed: int = 0) -> Variation:
    """A variation in the usual units, with the usual initialisation and a full minibatch."""
    variation = drawn(name, seed)
    return variation._replace(
        units=jax.tree.map(jnp.ones_like, variation.units),
        loss_scale=jnp.float32(1),
        gain=jnp.float32(1),
        examples=jnp.int32(SETTINGS.batch_size),
    )


def test_these_are_all() -> None:
    assert GUESS.keys() == FAMILIES.keys()


@pytest.mark.parametrize("name", [name if name == "table" else slow(name) for name in GUESS])
def test_a_network_that_is_silent_guesses_and_adam_learns(name: str) -> None:
    task, tx, (parameters, guess) = family(name).member(plain(name)), optax.adam(1e-2), GUESS[name]
    shapes = jax.eval_shape(task.init, jax.random.key(0))
    assert sum(x.size for x in jax.tree.leaves(shapes)) == parameters

    @jax.jit
    def train(data: object, key: jax.Array) -> tuple[jax.Array, jax.Array, dict[str, jax.Array]]:
        silent = jax.tree.map(lambda x: jnp.zeros(x.shape), shapes)
        params, keys = task.init(key), jax.random.split(key, 300)

        def step(carry: tuple, key: jax.Array) -> tuple[tuple, tuple]:
            params, state = carry
            batch = task.sample(data, key)
            loss, gradients = jax.value_and_grad(task.loss)(params, batch)
            updates, state = tx.update(gradients, state, params)
            return (optax.apply_updates(params, updates), state), (task.loss(silent, batch), loss)

        (params, _), (guesses, losses) = jax.lax.scan(step, (params, tx.init(params)), keys)
        return guesses, losses, task.metrics(params, data)

    guesses, losses, metrics = train(data(name), jax.random.key(4))
    if name == "table":
        guess += float(drawn(name).own.target_shift) ** 2  # the guess is 0, not the mean of the target
    assert guesses.mean() == pytest.approx(guess, rel=0.2)
    assert np.isfinite(losses).all() and losses[0] > 0.5 * guess
    assert losses[-20:].mean() < 0.8 * min(guess, losses[:5].mean())
    assert metrics["validation_loss"] < guess


@pytest.mark.parametrize("name", ["digits-mlp", slow("text-transformer"), slow("ratings")])
def test_a_member_is_the_same_task_in_other_units(name: str) -> None:
    """The loss is its scale times the loss in the usual units, and gradients follow the chain rule."""
    leaves, tree = jax.tree.flatten(plain(name).units)
    units, scale = tree.unflatten(list(jnp.logspace(-3, 3, len(leaves)))), 30.0

    @jax.jit
    def measured(variation: Variation, data: object) -> tuple:
        task, key = family(name).member(variation), jax.random.key(5)
        params = task.init(key)
        loss, gradient = jax.value_and_grad(task.loss)(params, task.sample(data, key))
        return (
            params,
            gradient,
            loss,
            task.metrics(params, data)["validation_loss"],
            jnp.float32(task.max_loss),
        )

    params, gradient, *losses = measured(plain(name), data(name))
    theirs, their_gradient, *their_losses = measured(
        plain(name)._replace(units=units, loss_scale=jnp.float32(scale)), data(name)
    )
    np.testing.assert_allclose(their_losses, scale * np.array(losses), rtol=1e-4)

    def compare(p: jax.Array, g: jax.Array, other_p: jax.Array, other_g: jax.Array, unit: jax.Array) -> None:
        np.testing.assert_allclose(other_p * unit, p, rtol=1e-6)
        np.testing.assert_allclose(other_g / (scale * unit), g, rtol=1e-3, atol=1e-4 * np.abs(g).max())

    jax.tree.map(compare, params, gradient, theirs, their_gradient, units)
    assert max(np.abs(x).max() for x in jax.tree.leaves(gradient)) > 1e-3


def test_what_is_drawn() -> None:
    draws = jax.jit(jax.vmap(family("digits-mlp").draw))(jax.random.split(jax.random.key(7), 4000))
    units = np.stack(jax.tree.leaves(draws.units), 1)
    usual = (units == 1).all(1)
    assert usual.mean() == pytest.approx(0.75, abs=0.03)
    exponents = np.log10(units[~usual])
    assert exponents.min() == pytest.approx(-3, abs=0.01) and exponents.max() == pytest.approx(3, abs=0.01)
    assert exponents.std() == pytest.approx(6 / 12**0.5, rel=0.05)  # uniform distribution
    assert np.abs(np.corrcoef(exponents.T) - np.eye(units.shape[1])).max() < 0.1  # uncorrelated
    long = draws.horizon > 2000
    assert long.mean() == pytest.approx(0.1, abs=0.025)
    for horizons, low, high in ((draws.horizon[~long], 100, 2_000), (draws.horizon[long], 2_000, 10_000)):
        assert low <= horizons.min() < 1.1 * low and 0.9 * high < horizons.max() <= high
        assert np.log(horizons).mean() == pytest.approx((math.log(low) + math.log(high)) / 2, rel=0.02)
    assert (draws.examples.min(), draws.examples.max()) == (16, SETTINGS.batch_size)
    assert 0.01 <= draws.loss_scale.min() < 0.012 and 85 < draws.loss_scale.max() <= 100
    assert set(np.asarray(draws.activation).tolist()) == {0, 1, 2}
    assert set(np.asarray(draws.own.depth).tolist()) == {1, 2, 3}
    wrong = (np.asarray(draws.own.wrong) >= 0).mean(1)
    assert (wrong == 0).mean() == pytest.approx(0.5, abs=0.03)
    # A tenth of them are right by chance.
    assert 0.17 < wrong[wrong > 0].mean() < 0.23 and 0.35 < wrong.max() < 0.45
    few = np.asarray(draws.own.available)[draws.own.available < 1400]
    assert few.size / 4000 == pytest.approx(0.5, abs=0.03) and few.min() == 50 and few.max() > 1300
    assert np.log(few).mean() == pytest.approx((math.log(50) + math.log(1400)) / 2, rel=0.02)


def test_wrong_labels_stay_the_same() -> None:
    variation = plain("digits-mlp")
    wrong = jnp.full_like(variation.own.wrong, -1).at[:700].set(3)
    own = variation.own._replace(wrong=wrong, available=jnp.int32(1400))
    task = family("digits-mlp").member(variation._replace(own=own))
    images = data("digits-mlp")
    labels = {}
    sample = jax.jit(task.sample)
    for key in jax.random.split(jax.random.key(8), 60):
        batch = sample(images, key)
        for pixels, label in zip(np.asarray(batch.images), np.asarray(batch.labels), strict=True):
            assert labels.setdefault(pixels.tobytes(), label) == label
    standardised = (np.float32(images.train.images) - images.mean) * images.inverse_std
    expected = np.where(np.arange(1400) < 700, 3, images.train.labels)
    truth = {
        pixels.tobytes(): label for pixels, label in zip(np.asarray(standardised), expected, strict=True)
    }
    assert len(labels) > 1200
    assert all(truth[pixels] == label for pixels, label in labels.items())


@pytest.mark.parametrize("name", ["digits-mlp", "digits-resnet"])
def test_a_member_with_few_examples_sees_no_others(name: str) -> None:
    variation, count = plain(name), jnp.int32(60)
    own = variation.own._replace(available=count) if name == "digits-mlp" else count
    task = family(name).member(variation._replace(own=own))
    images = jax.jit(jax.vmap(lambda key: task.sample(data(name), key)))(
        jax.random.split(jax.random.key(8), 60)
    ).images
    assert len(np.unique(images.reshape(-1, images.shape[-1]), axis=0)) == 60


def test_rare_rows_are_rarely_seen_and_have_no_gradient_else() -> None:
    variation = plain("ratings")
    variation = variation._replace(own=variation.own._replace(rarity=jnp.float32(1)))
    task = family("ratings").member(variation)
    batches = jax.jit(jax.vmap(lambda key: task.sample(None, key)))(jax.random.split(jax.random.key(9), 400))
    counts = np.bincount(np.asarray(batches.users).reshape(-1), minlength=128)
    shares = 1 / np.arange(1, 129)
    np.testing.assert_allclose(counts[:8] / counts.sum(), shares[:8] / shares.sum(), rtol=0.1)
    assert batches.ratings.std() == pytest.approx(1, abs=0.3)
    batch = jax.tree.map(lambda x: x[0], batches)
    gradient = jax.jit(jax.grad(task.loss))(jax.jit(task.init)(jax.random.key(0)), batch)["users"][
        "embedding"
    ]
    seen = np.isin(np.arange(128), batch.users)
    assert (np.abs(gradient).max(1) > 0).tolist() == seen.tolist() and not seen.all()


def test_a_small_minibatch_in_the_shape_of_a_large_one() -> None:
    indices = random_indices(jax.random.key(0), 1000, 16, jnp.int32(4))
    assert indices.shape == (16,) and len(set(indices.tolist())) == 4
    assert np.asarray(repeated(jnp.arange(16), jnp.int32(4))).tolist() == [0, 1, 2, 3] * 4
    many = random_indices(jax.random.key(1), 10, 5000, jnp.int32(5000))
    counts = np.bincount(np.asarray(many), minlength=10)
    assert counts.min() > 400 and len(counts) == 10


# Training a member as part of a family


def toy(length: int = 6) -> TaskFamily:
    """Members that fit a number, with different loss scales; their horizons are `length` or one more."""

    def draw(key: jax.Array) -> Variation:
        more, scale, target = jax.random.split(key, 3)
        return Variation(
            units=jnp.float32(1),
            loss_scale=10.0 ** jax.random.uniform(scale, minval=-2, maxval=2),
            horizon=length + jax.random.bernoulli(more).astype(jnp.int32),
            gain=jnp.float32(1),
            num_steps=jnp.float32(0),
            examples=jnp.int32(1),
            activation=jnp.int32(0),
            own=jax.random.normal(target),
        )

    def member(variation: Variation) -> Task:
        return Task(
            init=lambda key: jnp.zeros(()),
            sample=lambda data, key: data,
            loss=lambda x, data: variation.loss_scale * (x - variation.own - data) ** 2,
            metrics=lambda x, data: {},
            load=lambda data_dir: jnp.float32(0.5),
            horizon=variation.horizon,
            max_loss=100 * variation.loss_scale,
        )

    return TaskFamily(draw, member, lambda data_dir: jnp.float32(0.5), horizon=10, max_loss=100.0)


@pytest.mark.parametrize("objective", ["training-loss", "mean-and-end"])
def test_an_episode_is_that_of_its_member(objective: str) -> None:
    """The losses equal those of training the member alone, in the units of the family, followed by zeros."""
    problem = FamilyTraining(jnp.float32(0.5), toy(), SGD, OBJECTIVES[objective])
    for seed in range(4):
        key = jax.random.key(seed)
        state = problem.init(key)
        length = int(problem.length(key))
        assert length == int(state.variation.horizon) in (6, 7)
        member = problem.family.member(state.variation)
        alone = Training(problem.data, member, SGD, length, OBJECTIVES[objective])
        own = alone.init(key)
        rate = 0.1 / state.variation.loss_scale
        for step in range(10):
            state, loss = problem.step(rate, state, jax.random.key(step))
            if step < length:
                own, expected = alone.step(rate, own, jax.random.key(step))
                assert float(loss) == pytest.approx(float(expected / state.variation.loss_scale), rel=1e-5)
            else:
                assert loss == 0
            assert state.training.params == own.params
        assert state.training.params != 0


def test_three_of_four_members_tell_their_length() -> None:
    family = find_task("general-tasks").build(TaskSettings(horizon=500)).members["table"]
    drawn = jax.vmap(family.draw)(jax.random.split(jax.random.key(0), 400))
    told = np.isfinite(drawn.num_steps)
    assert 0.68 < told.mean() < 0.82  # three standard errors
    np.testing.assert_array_equal(drawn.num_steps[told], drawn.horizon[told])

    seen: list[jax.Array] = []

    def update(theta: Any, gradients: Any, state: Any, params: Any, num_steps: jax.Array) -> Any:
        seen.append(num_steps)
        return gradients, state

    optimizer = LearnedOptimizer(lambda key, blocks: {}, lambda params: (), update, takes_num_steps=True)
    problem = FamilyTraining(family.load(None), family, optimizer)
    for seed in range(2):
        state = problem.init(jax.random.key(seed))
        problem.step({}, state, jax.random.key(0))
        assert seen[-1] == state.variation.num_steps


def test_estimators_restart_an_episode_at_its_own_end() -> None:
    problem = FamilyTraining(jnp.float32(0.5), toy(), SGD)
    estimator = pes(problem, sigma=0.01, truncation=4)
    theta = jnp.float32(0.01)
    state = estimator.init(jax.random.key(0), theta, 0.0)
    estimate = jax.jit(estimator.estimate)
    lengths, steps, episodes = [], 0, 0
    for number in range(40):
        fresh = number == 0 or state.position >= state.length
        before = state
        _, state, info = estimate(theta, state, jax.random.key(number))
        if fresh:
            lengths.append(int(state.length))
            assert int(state.position) == 4
        else:
            assert state.length == before.length
            assert int(state.position) == state.length  # two windows, the second cut short
        assert state.length == state.carried.inner.variation.horizon[0]
        steps, episodes = steps + float(info["steps"]), episodes + float(info["episodes"])
    assert set(lengths) == {6, 7}
    assert steps == 2 * sum(lengths) and episodes == 2 * len(lengths)


def test_an_episode_that_starts_in_the_middle_counts_what_it_takes() -> None:
    """Its member counts its own steps, of which there are enough for whole windows."""
    problem = FamilyTraining(jnp.float32(0.5), toy(), SGD)
    estimator = pes(problem, sigma=0.01, truncation=4)
    theta = jnp.float32(0.01)
    state = estimator.init(jax.random.key(0), theta, 0.9)
    assert int(state.position) == 4
    _, state, info = estimator.estimate(theta, state, jax.random.key(0))
    assert info["steps"] == 2 * 4 and info["episodes"] == 2
    assert np.all(np.asarray(state.carried.inner.training.steps) == 4)


def test_a_family_as_a_task_by_itself() -> None:
    task = family("table").example()
    assert isinstance(task.horizon, int) and isinstance(task.max_loss, float)
    assert np.isfinite(task.loss(task.init(jax.random.key(0)), task.sample(data("table"), jax.random.key(1))))
    small = FAMILIES["text-gru"](TaskSettings(batch_size=16, horizon=12))
    assert small.horizon == small.example().horizon == 12
    assert small.example().sample(data("text-gru"), jax.random.key(0)).shape == (4, 17)
