"""Optimizers that take the number of steps of a run."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import learned_opt
from inner_tasks import find_task
from learned_opt import as_optax, get_architecture
from learned_opt._src.architectures.corrected_nadam import _time as time_of
from learned_opt._src.architectures.features import Clock
from learned_opt._src.architectures.learned_schedule import init_schedules, schedules
from tests.learned_opt import plain

NADAM_MLP = get_architecture("nadam-mlp")
FRESH = NADAM_MLP.init_theta(jax.random.key(0), 1)


def gradients(count, shape=(6, 8)):
    """Gradients of both signs and sizes around 1."""
    drawn = [jax.random.normal(key, shape) for key in jax.random.split(jax.random.key(1), count)]
    return [x + 0.5 * jnp.sign(x) for x in drawn]


def steps(tx, param, count):
    """Updates for some gradients with fixed parameters."""
    state, found = tx.init(param), []
    for gradient in gradients(count, param.shape):
        update, state = tx.update(gradient, state, param)
        found.append(update)
    return np.stack(found)


def moved(optimizer):
    fresh = optimizer.init_theta(jax.random.key(0), 1)
    return jax.tree.map(lambda w: w + 0.2 * jax.random.normal(jax.random.key(w.size), w.shape), fresh)


@pytest.mark.parametrize("num_steps", [7, 200, 20_000])
@pytest.mark.parametrize(
    ("name", "shape"),
    [("nadam-mlp", (6, 8)), ("muon-mlp", (6, 8)), ("muon-mlp", (3, 17)), ("muon-mlp", (17, 4))],
)
def test_updates_equal_the_plain_formula(name, shape, num_steps):
    """At the end of the run and after it, too."""
    optimizer, rule = get_architecture(name), {"nadam-mlp": plain.nadam_mlp, "muon-mlp": plain.muon_mlp}[name]
    param, theta = jax.random.normal(jax.random.key(2), shape), moved(optimizer)
    found = steps(as_optax(optimizer, theta, num_steps=num_steps), param, 9)
    theta = jax.tree.map(lambda w: np.asarray(w, np.float64), theta)
    seen = [np.asarray(g, np.float64) for g in gradients(9, shape)]
    expected = [
        rule(theta, seen[: count + 1], np.asarray(param, np.float64), count, num_steps) for count in range(9)
    ]
    np.testing.assert_allclose(found, expected, rtol=1e-4, atol=1e-5 * np.abs(expected).max())
    assert (num_steps > 7) == bool(np.abs(found[8]).max() > 1e-7)


def seen_by_networks(step, num_steps):
    return np.asarray(time_of(Clock(jnp.int32(step), jnp.float32(num_steps))))


@pytest.mark.parametrize("share", [0, 0.1, 0.5, 0.99, 1])
def test_a_longer_run_looks_to_the_networks_like_the_longest_of_meta_training(share):
    """What a network says where it has learned nothing could be anything."""
    longest = find_task("general-tasks").settings.horizon
    seen = [seen_by_networks(share * factor * longest, factor * longest) for factor in (0.5, 1, 5, 50)]
    np.testing.assert_allclose(seen[2:], [seen[1]] * 2, rtol=1e-5, atol=1e-6)
    assert not np.allclose(seen[0], seen[1], rtol=1e-2)


def test_without_the_number_of_steps_the_clock_of_the_networks_stands_still_at_last():
    longest = find_task("general-tasks").settings.horizon
    last, later, earlier = (seen_by_networks(factor * longest, np.inf) for factor in (1, 50, 0.5))
    np.testing.assert_array_equal(last, later)
    assert not np.allclose(earlier, last, rtol=1e-2)


@pytest.mark.parametrize("num_steps", [1000, None])
def test_a_fresh_one_is_nadam(num_steps):
    """With its own schedule, and apart from the shrinkage."""
    param = jax.random.normal(jax.random.key(2), (6, 8))
    scale = 0.5 * jnp.sqrt(jnp.mean(param**2) + 1e-4) * (6**-0.5 + 8**-0.5)

    def schedule(t):
        end = (1 + t / 100) ** -0.75 if num_steps is None else (1 - t / 1000) / (1 + t / 1000)
        return scale * jnp.minimum(1, (t + 1) / 3) * end

    expected = steps(optax.nadam(schedule, b1=0.9, b2=0.99), param, 20)
    theta = FRESH | {"shrinkage": FRESH["shrinkage"] - 10}
    found = steps(as_optax(NADAM_MLP, theta, num_steps=num_steps), param, 20)
    # Second moments have a floor of 1e-4 of their mean.
    np.testing.assert_allclose(found, expected, rtol=2e-3, atol=1e-5)


def test_steps_shrink_with_the_gradients():
    """In proportion, but to no less than 0.03; larger gradients do not enlarge them."""
    schedule = FRESH["schedule"] | {"warm_up": FRESH["schedule"]["warm_up"] - 10}
    param, tx = jnp.ones((4, 4)), as_optax(NADAM_MLP, FRESH | {"schedule": schedule}, num_steps=10**9)
    gradient = gradients(1, (4, 4))[0]

    @jax.jit
    def last_of(factors):
        def step(state, factor):
            update, state = tx.update(factor * gradient, state, param)
            return state, jnp.linalg.norm(update)

        return jax.lax.scan(step, tx.init(param), factors)[1][-1]

    before = jnp.ones(5000)
    even = last_of(jnp.ones(6000))
    smaller = last_of(jnp.concatenate([before, jnp.full(1000, 0.1)]))
    # The level is an average of averages.
    square, level = 1.0, 1.0
    for _ in range(1000):
        square = 0.99 * square + 0.01 * 0.1**2
        level = 0.999 * level + 0.001 * square
    np.testing.assert_allclose(smaller / even, np.sqrt(square / level), rtol=0.01)
    larger = last_of(jnp.concatenate([before, jnp.full(1000, 100.0)]))
    np.testing.assert_allclose(larger / even, 1, rtol=0.02)
    vanishing = last_of(jnp.concatenate([before, jnp.full(3000, 1e-3)]))
    np.testing.assert_allclose(vanishing / even, 0.03, rtol=0.02)


def test_each_number_of_a_schedule_has_the_effect_of_its_name():
    def values(name, weight, num_steps):
        theta = init_schedules(1)
        theta[name] += weight
        clocks = [Clock(jnp.int32(t), jnp.float32(num_steps)) for t in (0, 500, 999)]
        return np.stack([schedules(theta, clock)[0] for clock in clocks])

    for num_steps in (1000, np.inf):
        fresh = values("decay", 0, num_steps)
        first, middle, last = values("warm_up", 1, num_steps) / fresh
        assert first < 0.1 and middle == last == 1
    fresh = values("decay", 0, 1000)
    first, middle, last = values("power", -0.2, 1000) / fresh  # decays later
    assert first > 0.999 and 1.1 < middle < last
    first, middle, last = values("fade", 0.2, 1000) / fresh  # decays earlier
    assert first > 0.999 and last < middle < 0.95
    np.testing.assert_array_equal(values("decay", 1, 1000), fresh)
    fresh = values("decay", 0, np.inf)
    first, middle, last = values("decay", 0.2, np.inf) / fresh
    assert first == 1 and last < middle < 0.8


def test_layers_stored_as_one_tensor_are_told_too():
    param = jax.random.normal(jax.random.key(2), (3, 4, 5))
    whole = steps(as_optax(NADAM_MLP, moved(NADAM_MLP), num_steps=5, layer_axes=0), param, 4)
    tx = as_optax(NADAM_MLP, moved(NADAM_MLP), num_steps=5)
    state, layers = tx.init(list(param)), []
    for gradient in gradients(4, param.shape):
        update, state = tx.update(list(gradient), state, list(param))
        layers.append(np.stack(update))
    np.testing.assert_allclose(whole, np.stack(layers), rtol=1e-5, atol=1e-7)


def test_others_refuse_it():
    with pytest.raises(learned_opt.UserError, match="num_steps is 100, but this optimizer does not use it"):
        learned_opt.pretrained("adam-small-tasks", num_steps=100)


@pytest.mark.parametrize("number", [0, -3])
def test_it_is_positive(number):
    with pytest.raises(learned_opt.UserError, match=f"num_steps is {number}; it must be"):
        as_optax(NADAM_MLP, FRESH, num_steps=number)
