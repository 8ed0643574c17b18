"""The MLP optimizer against the plain formula, computed apart from it in float64 NumPy."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from learned_opt import get_optimizer
from learned_opt.mlp import NUM_INPUTS, MLPState
from learned_opt.per_parameter import BLOCK_SIZE, PerParameterMLP, apply_blocked

DECAYS = np.array([0.1, 0.5, 0.9, 0.99, 0.999, 0.9999])
TIME_SCALES = np.array([1, 3, 10, 30, 100, 300, 1e3, 3e3, 1e4, 3e4, 1e5])


def plain_update(theta, gradient, param, momenta, count):
    """One row of 19 inputs per parameter, through the network, in float64."""
    theta = jax.tree.map(lambda w: np.asarray(w, np.float64), theta)
    gradient, param = (np.asarray(x, np.float64) for x in (gradient, param))
    momenta = np.stack([d * m + (1 - d) * gradient for d, m in zip(DECAYS, momenta, strict=True)])
    columns = [x.reshape(-1) for x in (gradient, param, *momenta)]
    columns = [x / np.sqrt(1e-5 + np.mean(x**2)) for x in columns]
    columns += [np.full(param.size, f) for f in np.tanh(count / TIME_SCALES - 1)]
    hidden = np.stack(columns, axis=1)
    for name in ("Dense_0", "Dense_1"):
        hidden = np.maximum(hidden @ theta[name]["kernel"] + theta[name]["bias"], 0)
    direction, magnitude = (hidden @ theta["Dense_2"]["kernel"] + theta["Dense_2"]["bias"]).T
    update = -0.001 * direction * np.exp(0.001 * magnitude)
    return update.reshape(param.shape), momenta


def relative_error(found, expected):
    return np.linalg.norm(np.asarray(found, np.float64) - expected) / np.linalg.norm(expected)


def random_theta(seed):
    """Weights such as meta-training makes: larger than the initial ones, with biases."""
    theta = get_optimizer("mlp").init_theta(jax.random.key(seed))
    leaves, tree = jax.tree.flatten(theta)
    keys = jax.random.split(jax.random.key(seed + 1), len(leaves))
    return tree.unflatten(
        [w + 0.3 * jax.random.normal(k, w.shape) for w, k in zip(leaves, keys, strict=True)]
    )


def test_number_of_weights():
    theta = get_optimizer("mlp").init_theta(jax.random.key(0))
    assert sum(w.size for w in jax.tree.leaves(theta)) == 19 * 32 + 32 + 32 * 32 + 32 + 32 * 2 + 2 == 1762


@pytest.mark.parametrize(
    "shape", [(), (1,), (7,), (BLOCK_SIZE,), (BLOCK_SIZE + 1,), (64, 33), (3, 4, 5, 6, 7), (784, 32)]
)
def test_single_update_equals_plain_formula(shape):
    count = 17
    keys = jax.random.split(jax.random.key(3), 3)
    param = jax.random.normal(keys[0], shape)
    gradient = 1e-2 * jax.random.normal(keys[1], shape)
    momenta = 1e-2 * jax.random.normal(keys[2], (6, *shape))
    theta = random_theta(5)
    state = MLPState(jnp.int32(count), {"w": momenta})
    updates, state = jax.jit(get_optimizer("mlp").update)(theta, {"w": gradient}, state, {"w": param})
    expected, expected_momenta = plain_update(theta, gradient, param, np.asarray(momenta), count)
    assert relative_error(updates["w"], expected) < 1e-5
    assert relative_error(state.momenta["w"], expected_momenta) < 1e-6
    assert int(state.count) == count + 1


@pytest.mark.parametrize("count", [0, 1, 100_000])
def test_step_number_counts_from_zero(count):
    theta, param, momenta = random_theta(1), np.linspace(-1, 1, 9), np.ones((6, 9)) / 3
    state = MLPState(jnp.int32(count), jnp.asarray(momenta, jnp.float32))
    update, _ = get_optimizer("mlp").update(theta, jnp.float32(param), state, jnp.float32(param))
    expected, _ = plain_update(theta, np.float32(param), np.float32(param), momenta, count)
    assert relative_error(update, expected) < 1e-5


def test_tensors_do_not_see_each_other():
    optimizer, theta = get_optimizer("mlp"), random_theta(0)
    a, b = jnp.arange(1.0, 5.0), jnp.arange(2.0, 8.0).reshape(2, 3)
    both, _ = optimizer.update(theta, {"a": a, "b": b}, optimizer.init({"a": a, "b": b}), {"a": a, "b": b})
    alone, _ = optimizer.update(theta, {"b": b}, optimizer.init({"b": b}), {"b": b})
    np.testing.assert_array_equal(both["b"], alone["b"])


def test_blocked_network_equals_flax_module():
    network = PerParameterMLP(hidden=(5, 6, 7), outputs=3)
    keys = jax.random.split(jax.random.key(0), 4)
    n, k, constants = 2 * BLOCK_SIZE + 77, 4, jax.random.normal(keys[0], (3,))
    theta = network.init(keys[1], jnp.zeros((1, k + 3)))["params"]
    features = jax.random.normal(keys[2], (k, n))
    scale = jax.random.uniform(keys[3], (k,))
    found = apply_blocked(
        theta, [features[:1], features[1:]], scale, constants, lambda out: out[0] - out[1] * out[2]
    )
    rows = jnp.concatenate([(features * scale[:, None]).T, jnp.broadcast_to(constants, (n, 3))], axis=1)
    out = network.apply({"params": theta}, rows).T
    assert relative_error(found, out[0] - out[1] * out[2]) < 1e-5


def test_scale_of_loss_hardly_matters():
    """Features are divided by their root mean square: 1,000 times the gradient gives the same step,
    where even the slowest momentum is well above the epsilon of that division."""
    optimizer, theta = get_optimizer("mlp"), random_theta(2)
    param, gradient = jnp.linspace(-1, 1, 50), 1e4 * jnp.cos(jnp.arange(50.0))
    state = optimizer.init(param)
    small, _ = optimizer.update(theta, gradient, state, param)
    large, _ = optimizer.update(theta, 1000 * gradient, state, param)
    assert relative_error(large, small) < 1e-3


@pytest.mark.parametrize("dtype", [jnp.bfloat16, jnp.float16, jnp.float32])
def test_dtypes(dtype):
    optimizer, theta = get_optimizer("mlp"), random_theta(0)
    params = {"w": jnp.ones((4, 5), dtype), "empty": jnp.zeros((0, 3), dtype)}
    updates, state = optimizer.update(theta, params, optimizer.init(params), params)
    assert updates["w"].dtype == updates["empty"].dtype == dtype
    assert updates["empty"].shape == (0, 3)
    assert state.momenta["w"].dtype == jnp.float32


def test_inputs_are_nineteen():
    assert NUM_INPUTS == 19
