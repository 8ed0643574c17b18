"""The networks of the tasks, against Flax's layers and against NumPy."""

from __future__ import annotations

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from inner_tasks.networks import (
    MLP,
    BatchNorm,
    Conv,
    LanguageGRU,
    LanguageTransformer,
    ResNet,
    VariationalAutoencoder,
    VisionTransformer,
    random_params,
)
from inner_tasks.networks.image_patches import image_patches
from inner_tasks.networks.transformer import Block
from tests.marks import slow

KEY = jax.random.key(0)


@pytest.mark.parametrize("stride", [1, 2])
@pytest.mark.parametrize("size", [(6, 6), (7, 5)])
def test_convolution_is_that_of_flax(stride: int, size: tuple[int, int]) -> None:
    images = jax.random.normal(KEY, (3, *size, 2))
    ours, theirs = Conv(4, stride), nn.Conv(4, (3, 3), stride)
    params = theirs.init(KEY, images)
    assert jax.tree.map(jnp.shape, ours.init(KEY, images)) == jax.tree.map(jnp.shape, params)
    np.testing.assert_allclose(ours.apply(params, images), theirs.apply(params, images), atol=1e-5)


def test_batch_norm_is_that_of_flax_in_training() -> None:
    images = 3 + 2 * jax.random.normal(KEY, (5, 4, 4, 3))
    params = {"scale": jnp.array([1.0, 2.0, 3.0]), "bias": jnp.array([0.5, 0.0, -1.0])}
    theirs = nn.BatchNorm(use_running_average=False)
    stats = theirs.init(KEY, images)["batch_stats"]
    expected, _ = theirs.apply({"params": params, "batch_stats": stats}, images, mutable=["batch_stats"])
    np.testing.assert_allclose(BatchNorm().apply({"params": params}, images), expected, atol=1e-4)


def test_attention_is_that_of_flax() -> None:
    """With dense layers that output zero, a block is ``x + attention(norm(x))``."""
    width, heads, length = 8, 2, 5
    x = jax.random.normal(KEY, (3, length, width))
    block = Block(heads, hidden=16, causal=True)
    params = block.init(KEY, x)["params"]
    silent = params | {"Dense_3": jax.tree.map(jnp.zeros_like, params["Dense_3"])}
    qkv = params["Dense_0"]["kernel"].reshape(width, 3, heads, width // heads)
    zero = jnp.zeros((heads, width // heads))
    theirs = {
        name: {"kernel": qkv[:, number], "bias": zero}
        for number, name in enumerate(("query", "key", "value"))
    }
    out = params["Dense_1"]["kernel"].reshape(heads, width // heads, width)
    theirs["out"] = {"kernel": out, "bias": jnp.zeros(width)}
    attention = nn.MultiHeadDotProductAttention(heads, deterministic=True)
    normed = nn.LayerNorm().apply({"params": params["LayerNorm_0"]}, x)
    mask = nn.make_causal_mask(jnp.ones((3, length)))
    expected = x + attention.apply({"params": theirs}, normed, mask=mask)
    np.testing.assert_allclose(block.apply({"params": silent}, x), expected, atol=1e-5)


@pytest.mark.parametrize(
    "model", [LanguageTransformer(9, width=8, heads=2, blocks=2), LanguageGRU(9, embedding=4, width=8)]
)
def test_language_models_do_not_see_what_they_are_to_guess(model: nn.Module) -> None:
    text = jax.random.randint(KEY, (2, 7), 0, 9)
    params = model.init(KEY, text)
    logits = model.apply(params, text)
    assert logits.shape == (2, 7, 9)
    changed = model.apply(params, text.at[:, 4].set((text[:, 4] + 1) % 9))
    np.testing.assert_allclose(changed[:, :4], logits[:, :4], atol=1e-6)
    assert np.abs(changed[:, 4:] - logits[:, 4:]).max(axis=(0, 2)).min() > 1e-4  # they see earlier ones


def test_gru_is_that_of_numpy() -> None:
    model, text = LanguageGRU(9, embedding=4, width=3), jax.random.randint(KEY, (2, 6), 0, 9)
    params = jax.tree.map(lambda x: x + 0.1, model.init(KEY, text)["params"])
    p = jax.tree.map(lambda x: np.asarray(x, np.float64), params)

    def sigmoid(x: np.ndarray) -> np.ndarray:
        return 1 / (1 + np.exp(-x))

    hidden, expected = np.zeros((2, 3)), []
    for letters in np.asarray(text).T:
        x = p["Embed_0"]["embedding"][letters] @ p["inputs"]["kernel"] + p["inputs"]["bias"]
        h = hidden @ p["recurrent"]
        z, r = sigmoid(x[:, :3] + h[:, :3]), sigmoid(x[:, 3:6] + h[:, 3:6])
        hidden = (1 - z) * hidden + z * np.tanh(x[:, 6:] + r * h[:, 6:])
        expected.append(hidden @ p["Dense_0"]["kernel"] + p["Dense_0"]["bias"])
    found = model.apply({"params": params}, text)
    np.testing.assert_allclose(found, np.swapaxes(expected, 0, 1), atol=1e-5)


def test_patches_are_squares_of_the_image() -> None:
    images = jnp.arange(2 * 6 * 4 * 3.0).reshape(2, -1)
    patches = image_patches(images, (6, 4, 3), side=2)
    assert patches.shape == (2, 6, 12)
    image = np.asarray(images[1]).reshape(6, 4, 3)
    np.testing.assert_array_equal(patches[1, 3], image[2:4, 2:4].reshape(-1))  # second row, second column


def test_divergence_of_a_code() -> None:
    """Against its definition, the mean of ``log q(z) - log p(z)`` over codes z drawn from q."""
    model = VariationalAutoencoder((5,), 2, 4)
    x = jax.random.normal(KEY, (1, 4))
    params = model.init(KEY, x, jnp.zeros((1, 2)))["params"]
    params["Dense_1"]["bias"] = jnp.array([0.7, -0.4, -0.5, 0.3])
    _, divergence = model.apply({"params": params}, x, jnp.zeros((1, 2)))
    p = jax.tree.map(lambda v: np.asarray(v, np.float64), params)
    hidden = np.tanh(x @ p["Dense_0"]["kernel"] + p["Dense_0"]["bias"])
    moments = np.asarray(hidden @ p["Dense_1"]["kernel"] + p["Dense_1"]["bias"])[0]
    mean, log_std = moments[:2], moments[2:]
    noise = np.random.default_rng(0).standard_normal((200_000, 2))
    z = mean + np.exp(log_std) * noise
    sample = (-(noise**2) / 2 - log_std + z**2 / 2).sum(1)
    error = sample.std() / np.sqrt(len(sample))
    assert error < 0.01 * sample.mean()
    assert float(divergence[0]) == pytest.approx(sample.mean(), abs=4 * error)


def test_layers_that_are_not_used_pass_on() -> None:
    x = jax.random.normal(KEY, (3, 5))
    params = MLP((4, 4, 4), 2).init(KEY, x)["params"]
    shallow = {"Dense_0": params["Dense_0"], "Dense_1": params["Dense_3"]}
    expected = MLP((4,), 2).apply({"params": shallow}, x)
    found = MLP((4, 4, 4), 2, depth=jnp.int32(1)).apply({"params": params}, x)
    np.testing.assert_allclose(found, expected, rtol=1e-6)
    whole = MLP((4, 4, 4), 2).apply({"params": params}, x)
    np.testing.assert_allclose(MLP((4, 4, 4), 2, depth=jnp.int32(3)).apply({"params": params}, x), whole)


def test_random_params_are_as_large_as_those_of_flax() -> None:
    model, text = LanguageTransformer(64, width=64, heads=4, blocks=1), jnp.zeros((1, 64), jnp.int32)
    theirs = model.init(KEY, text)["params"]
    ours = random_params(theirs, jax.random.key(1), gain=2.0)

    def compare(path: tuple, mine: jax.Array, other: jax.Array) -> None:
        if path[-1].key in ("bias", "scale"):
            np.testing.assert_array_equal(mine, other)
        else:
            assert mine.std() == pytest.approx(2 * float(other.std()), rel=0.1)

    jax.tree_util.tree_map_with_path(compare, ours, theirs)
    flat = np.concatenate([np.asarray(x).reshape(-1) for x in jax.tree.leaves(ours)])
    values = flat[(flat != 0) & (flat != 1)]
    assert len(np.unique(values)) > 0.99 * len(values)  # no number is drawn twice


@pytest.mark.parametrize(
    "model",
    [
        ResNet((8, 8, 3), (4, 8), 10),
        slow(ResNet((8, 8, 3), (4, 8), 10, BatchNorm)),
        slow(VisionTransformer((8, 8, 3), side=4, width=8, heads=2, blocks=1, outputs=10)),
    ],
)
def test_networks_of_images_use_every_pixel_and_parameter(model: nn.Module) -> None:
    images = jax.random.normal(KEY, (4, 8 * 8 * 3))
    params = random_params(jax.eval_shape(model.init, KEY, images)["params"], KEY)

    def loss(params: dict, images: jax.Array) -> jax.Array:
        logits = model.apply({"params": params}, images)
        assert logits.shape == (4, 10)
        return -jax.nn.log_softmax(logits)[:, 3].mean()

    params_gradient, pixels_gradient = jax.jit(jax.grad(loss, (0, 1)))(params, images)
    assert all(np.isfinite(x).all() for x in jax.tree.leaves((params_gradient, pixels_gradient)))
    assert (np.abs(pixels_gradient) > 0).mean() > 0.95
    # A bias that a batch norm cancels has a gradient of 0, up to rounding.
    silent = [x for x in jax.tree.leaves(params_gradient) if not np.any(x)]
    assert not silent
