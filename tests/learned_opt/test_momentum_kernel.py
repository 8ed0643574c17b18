"""The GPU kernel against the formulation for all other devices; no GPU is needed."""

from __future__ import annotations

from functools import partial
from types import SimpleNamespace

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.extend.core import jaxprs_in_params
from jax.sharding import AbstractDevice, AbstractMesh

from learned_opt import get_architecture
from learned_opt._src.architectures import momentum_kernel, per_tensor
from learned_opt._src.architectures.momentum_kernel import SMALL, SMALL_BLOCK
from tests.learned_opt.test_architectures import random_theta, relative_error
from tests.marks import slow

NAMES = ("mlp", "metz2019")
SHAPES = {
    "large": (SMALL // 64 + 1, 64),
    "small": (3, SMALL_BLOCK + 1),
    "vector": (7,),
    "number": (),
    "empty": (0, 2),
}


@pytest.fixture
def kernel_here(monkeypatch):
    """Make optimizers use the kernel, interpreted."""
    interpreted = partial(momentum_kernel.momentum_kernel, interpret=True)
    monkeypatch.setattr(momentum_kernel, "momentum_kernel", interpreted)
    monkeypatch.setattr(per_tensor, "_usable", for_gpu)
    monkeypatch.setattr(jax.lax, "platform_dependent", lambda *args, cuda, default: cuda(*args))


@pytest.fixture
def gpu_is_there(monkeypatch):
    """A machine with a GPU, as far as the choice of the kernel is concerned."""
    monkeypatch.setattr(per_tensor, "_usable", for_gpu)


def for_gpu(kernels, *_):
    return {"cuda": kernels["cuda"]} if kernels else {}


def network(shapes=SHAPES):
    keys = jax.random.split(jax.random.key(4), 2 * len(shapes))
    params = {name: 0.3 * jax.random.normal(k, s) for k, (name, s) in zip(keys, shapes.items(), strict=False)}
    gradients = {
        name: jax.random.normal(k, s) + 0.5
        for k, (name, s) in zip(keys[len(shapes) :], shapes.items(), strict=True)
    }
    return params, gradients


def two_steps(name, theta, params, gradients):
    """Update and state of the second step, where the momenta are no longer multiples of the gradient."""
    optimizer = get_architecture(name)
    other = jax.tree.map(lambda g, p: 0.2 * g + p, gradients, params)
    _, state = optimizer.update(theta, other, optimizer.init(params), params)
    return optimizer.update(theta, gradients, state, params)


@pytest.mark.parametrize("name", [slow("mlp"), "metz2019"])
def test_kernel_equals_plain_formulation(name, kernel_here, monkeypatch):
    found = jax.jit(partial(two_steps, name))(random_theta(name, 7), *network())
    monkeypatch.setattr(per_tensor, "_usable", lambda *_: {})
    expected = jax.jit(partial(two_steps, name))(random_theta(name, 7), *network())
    assert jax.tree.structure(found) == jax.tree.structure(expected)
    for a, b in zip(jax.tree.leaves(found), jax.tree.leaves(expected), strict=True):
        assert a.shape == b.shape and a.dtype == b.dtype
        if b.size:
            assert relative_error(a, np.asarray(b, np.float64)) < 1e-5


@pytest.mark.slow
def test_entries_that_stay_or_are_not_finite_are_those_of_the_plain_formulation(kernel_here, monkeypatch):
    shapes = {"small": SHAPES["small"], "vector": SHAPES["vector"]}
    theta, (params, gradients) = random_theta("mlp", 7), network(shapes)
    gradients["vector"] = gradients["vector"].at[0].set(jnp.nan).at[1].set(0)
    gradients["small"] = gradients["small"].at[0, :3].set(jnp.array([jnp.inf, 0, -jnp.inf]))
    params["small"] = params["small"].at[1, 1].set(jnp.nan)

    def updates():
        optimizer = get_architecture("mlp")
        return jax.jit(optimizer.update)(theta, gradients, optimizer.init(params), params)[0]

    found = updates()
    monkeypatch.setattr(per_tensor, "_usable", lambda *_: {})
    expected = updates()
    assert np.isnan(expected["vector"][0]) and expected["vector"][1] == 0 and expected["small"][0, 1] == 0
    for name in shapes:
        np.testing.assert_allclose(found[name], expected[name], rtol=1e-4, atol=1e-8)


@pytest.mark.slow
def test_every_particle_has_its_own_theta(kernel_here):
    shapes = {"small": SHAPES["small"], "vector": SHAPES["vector"]}
    thetas = [random_theta("mlp", seed) for seed in range(3)]
    params, gradients = network(shapes)
    scaled = [jax.tree.map(lambda g, c=c: c * g, gradients) for c in (1.0, -2.0, 30.0)]
    stacked = [jax.tree.map(lambda *x: jnp.stack(x), *xs) for xs in (thetas, scaled)]
    found = jax.jit(jax.vmap(lambda t, g: two_steps("mlp", t, params, g)))(*stacked)
    of_one = jax.jit(partial(two_steps, "mlp"))
    for i, (theta, gradient) in enumerate(zip(thetas, scaled, strict=True)):
        alone = of_one(theta, params, gradient)
        for a, b in zip(jax.tree.leaves(found), jax.tree.leaves(alone), strict=True):
            np.testing.assert_allclose(a[i], b, rtol=1e-5, atol=1e-9)


@pytest.mark.slow
@pytest.mark.parametrize("name", NAMES)
def test_derivative_is_that_of_the_plain_formulation(name, kernel_here, monkeypatch):
    """Truncated backpropagation differentiates the optimizer."""
    shapes = {"small": SHAPES["small"], "vector": SHAPES["vector"]}
    theta, (params, gradients) = random_theta(name, 7), network(shapes)

    def total(theta):
        updates, _ = two_steps(name, theta, params, gradients)
        return sum(jnp.sum(u**2) for u in jax.tree.leaves(updates))

    found = jax.grad(total)(theta)
    monkeypatch.setattr(per_tensor, "_usable", lambda *_: {})
    expected = jax.grad(total)(theta)
    for a, b in zip(jax.tree.leaves(found), jax.tree.leaves(expected), strict=True):
        assert relative_error(a, np.asarray(b, np.float64)) < 1e-4


@pytest.mark.parametrize("vmapped", [False, True])
@pytest.mark.parametrize("name", [slow("mlp"), "metz2019"])
def test_compiled_for_a_gpu_it_is_the_kernel(name, vmapped, gpu_is_there):
    """Lowered to the input of the GPU's compiler; on a CPU the same program runs the plain formulation."""
    params, gradients = network()
    optimizer, theta = get_architecture(name), random_theta(name, 7)
    state = optimizer.init(params)

    def update(theta):
        return optimizer.update(theta, gradients, state, params)

    function = jax.vmap(update) if vmapped else update
    argument = jax.tree.map(lambda x: x[None], theta) if vmapped else theta
    h100 = AbstractDevice(device_kind="NVIDIA H100 80GB HBM3", num_cores=None, platform="gpu")
    with jax.sharding.use_abstract_mesh(AbstractMesh((), (), abstract_device=h100)):
        traced = jax.jit(function).trace(argument)
        for_gpu = traced.lower(lowering_platforms=("cuda",)).as_text()
    # One kernel for the large tensor, one for all small ones together.
    assert for_gpu.count("stablehlo.custom_call @mosaic_gpu") == 2
    assert "mosaic" not in traced.lower(lowering_platforms=("cpu",)).as_text()


@pytest.mark.parametrize(
    "backend, capability, expected",
    [("gpu", "9.0", True), ("gpu", "10.0", True), ("gpu", "8.6", False), ("gpu", "gfx942", False)]
    + [("cpu", None, False)],
)
def test_kernel_is_for_hopper_and_later(backend, capability, expected, monkeypatch):
    device = SimpleNamespace(compute_capability=capability) if capability else SimpleNamespace()
    monkeypatch.setattr(jax, "default_backend", lambda: backend)
    monkeypatch.setattr(jax, "local_devices", lambda: [device])
    kernels = {"cuda": object(), "cpu": object()}
    used = {"cuda": kernels["cuda"]} if expected else {}
    assert per_tensor._usable(kernels, [jnp.dtype("float32")], [False]) == used
    assert per_tensor._usable(kernels, [jnp.dtype("float64")], [False]) == {}
    assert per_tensor._usable(kernels, [jnp.dtype("float32")], [True]) == {}


@pytest.mark.parametrize("asked", [None, "tensorfloat32"])
@pytest.mark.parametrize("name", ["mlp", *map(slow, ("metz2019", "small-fc", "celo2-style", "relative-mlp"))])
def test_precision_of_every_product_is_stated(name, asked, gpu_is_there):
    """A GPU's default is tf32, which is used only if JAX is set to it."""
    params, gradients = network()
    optimizer, theta = get_architecture(name), random_theta(name, 7)
    state = optimizer.init(params)
    with jax.default_matmul_precision(asked):
        jaxpr = jax.make_jaxpr(lambda t: optimizer.update(t, gradients, state, params))(theta)
    expected = jax.lax.Precision.HIGH if asked else jax.lax.Precision.HIGHEST
    dots = [eqn for eqn in _equations(jaxpr.jaxpr) if eqn.primitive.name == "dot_general"]
    assert {eqn.params["precision"] for eqn in dots} == {(expected, expected)}


def _equations(jaxpr):
    for eqn in jaxpr.eqns:
        yield eqn
        for sub in jaxprs_in_params(eqn.params):
            yield from _equations(sub)
