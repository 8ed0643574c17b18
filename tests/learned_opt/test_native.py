"""The native kernel for CPUs against JAX's operations, and what can go wrong in making it."""

from __future__ import annotations

import re
import shutil
from functools import partial
from unittest import mock

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import learned_opt
from learned_opt import UserError, get_architecture
from learned_opt._src import native
from tests.learned_opt.test_architectures import random_theta, relative_error
from tests.learned_opt.test_momentum_kernel import network, two_steps
from tests.meta_train.command import TINY, lines, meta_train
from tests.meta_train.failures.messages import PAGE, check

# Whole tiles, a rest, less than a tile, and nothing.
SHAPES = {"tiles": (24, 64), "rest": (9, 147), "vector": (7,), "number": (), "empty": (0, 2)}

pytestmark = pytest.mark.skipif(not shutil.which("c++"), reason="there is no C++ compiler")


@pytest.fixture
def kernel(monkeypatch):
    """Use the kernel in this test only."""
    monkeypatch.setattr(native, "_in_use", False)
    learned_opt.use_native_kernels()


def without_kernel(function, *args):
    learned_opt.use_native_kernels(False)
    return jax.jit(lambda *args: function(*args))(*args)


@pytest.mark.parametrize("name", native.NATIVE_ARCHITECTURES)
def test_kernel_equals_the_operations_of_jax(name, kernel):
    step = partial(two_steps, name)
    theta, (params, gradients) = random_theta(name, 7), network(SHAPES)
    assert native.MOMENTUM_NETWORK in jax.jit(step).lower(theta, params, gradients).as_text()
    found = jax.jit(lambda *args: step(*args))(theta, params, gradients)
    expected = without_kernel(step, theta, params, gradients)
    assert jax.tree.structure(found) == jax.tree.structure(expected)
    for a, b in zip(jax.tree.leaves(found), jax.tree.leaves(expected), strict=True):
        assert a.shape == b.shape and a.dtype == b.dtype
        if b.size:
            assert relative_error(a, np.asarray(b, np.float64)) < 1e-6


def test_entries_that_stay_or_are_not_finite_are_those_of_jax(kernel):
    theta, (params, gradients) = random_theta("mlp", 7), network(SHAPES)
    gradients["vector"] = gradients["vector"].at[0].set(jnp.nan).at[1].set(0)
    gradients["tiles"] = gradients["tiles"].at[0, :3].set(jnp.array([jnp.inf, 0, -jnp.inf]))
    params["rest"] = params["rest"].at[8, 146].set(jnp.nan)
    optimizer = get_architecture("mlp")

    def updates(theta, params, gradients):
        return optimizer.update(theta, gradients, optimizer.init(params), params)[0]

    found = jax.jit(updates)(theta, params, gradients)
    expected = without_kernel(updates, theta, params, gradients)
    assert np.isnan(expected["vector"][0]) and expected["vector"][1] == 0 and expected["tiles"][0, 1] == 0
    for name in SHAPES:
        np.testing.assert_allclose(found[name], expected[name], rtol=1e-5, atol=1e-8)


@pytest.mark.parametrize("scale", [0, 1e30, jnp.nan])
def test_extreme_weights(scale, kernel):
    """Magnitudes whose exponential is 0 or infinite, and weights that are not finite."""
    theta, (params, gradients) = random_theta("mlp", 7), network({"rest": (9, 17)})
    theta["Dense_2"]["kernel"] = theta["Dense_2"]["kernel"] * scale
    step = partial(two_steps, "mlp")
    found = jax.jit(lambda *args: step(*args))(theta, params, gradients)
    expected = without_kernel(step, theta, params, gradients)
    np.testing.assert_allclose(found[0]["rest"], expected[0]["rest"], rtol=1e-5)


def test_every_particle_has_its_own_theta(kernel):
    params, gradients = network({"rest": (9, 17), "vector": (7,)})
    thetas = [random_theta("mlp", seed) for seed in range(3)]
    stacked = jax.tree.map(lambda *x: jnp.stack(x), *thetas)
    found = jax.jit(jax.vmap(lambda theta: two_steps("mlp", theta, params, gradients)))(stacked)
    alone = jax.jit(partial(two_steps, "mlp"))
    for i, theta in enumerate(thetas):
        for a, b in zip(
            jax.tree.leaves(found), jax.tree.leaves(alone(theta, params, gradients)), strict=True
        ):
            np.testing.assert_array_equal(a[i], b)


def test_derivative_is_that_of_jax(kernel):
    """Truncated backpropagation differentiates the optimizer."""
    theta, (params, gradients) = random_theta("metz2019", 7), network({"rest": (9, 17)})

    def total(theta):
        return jnp.sum(two_steps("metz2019", theta, params, gradients)[0]["rest"] ** 2)

    found, expected = jax.jit(jax.grad(total))(theta), without_kernel(jax.grad(total), theta)
    for a, b in zip(jax.tree.leaves(found), jax.tree.leaves(expected), strict=True):
        assert relative_error(a, np.asarray(b, np.float64)) < 1e-4


@pytest.mark.parametrize("dtype", ["float64", "bfloat16"])
def test_other_dtypes(dtype, kernel):
    """Float64 runs without the kernel; 16 bits run with it, because the state has 32."""
    with jax.enable_x64(dtype == "float64"):
        params = {"w": jnp.ones((3, 5), dtype)}
        optimizer, theta = get_architecture("mlp"), random_theta("mlp", 7)
        lowered = jax.jit(optimizer.update).lower(theta, params, optimizer.init(params), params)
        assert (native.MOMENTUM_NETWORK in lowered.as_text()) == (dtype == "bfloat16")


def test_a_run_has_the_same_bits_on_any_number_of_devices_and_when_resumed(tmp_path, no_comparing, kernel):
    flags = (TINY, "--native --checkpoint-every 2 --run-dir")
    with mock.patch.object(jax.ffi, "ffi_call", wraps=jax.ffi.ffi_call) as calls:
        assert meta_train(*flags, tmp_path / "one", "--updates 5 --devices 1").code == 0
    assert calls.called
    assert meta_train(*flags, tmp_path / "two", "--updates 5 --devices 2").code == 0
    one, two = ((tmp_path / name / "optimizer.safetensors").read_bytes() for name in ("one", "two"))
    assert lines(tmp_path / "one") == lines(tmp_path / "two") and one == two
    shutil.rmtree(tmp_path / "two" / "report")
    for update in (4, 5):
        shutil.rmtree(tmp_path / "two" / "checkpoints" / str(update))
    assert meta_train("--resume", tmp_path / "two").code == 0
    assert (tmp_path / "two" / "optimizer.safetensors").read_bytes() == one
    assert meta_train(TINY, "--updates 5 --devices 1 --run-dir", tmp_path / "without").code == 0
    assert not native.in_use()  # a run decides for itself
    losses = ([line["loss"] for line in lines(tmp_path / name)] for name in ("one", "without"))
    np.testing.assert_allclose(*losses, rtol=1e-5)


def test_native_is_for_architectures_that_have_a_kernel(tmp_path):
    outcome = meta_train(TINY, "--optimizer adam --native --run-dir", tmp_path / "run")
    check(outcome, 2, "--native is for mlp and metz2019, and the optimizer is adam")
    assert not (tmp_path / "run").exists()


@pytest.fixture
def fresh(monkeypatch, tmp_path):
    """No kernel has been made yet."""
    monkeypatch.setenv("LEARNED_OPT_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(native, "_register", native._register.__wrapped__)
    return tmp_path / "cache" / "kernels"


@pytest.mark.parametrize(
    "compiler, message",
    [
        ("no-such-compiler", "a native kernel needs a C++ compiler"),
        (" ", "a native kernel needs a C++ compiler"),
        ("false", "could not compile the native kernel"),
    ],
)
def test_no_compiler(compiler, message, fresh, monkeypatch, tmp_path):
    monkeypatch.setenv("CXX", compiler)
    with pytest.raises(UserError, match=re.escape(message)):
        learned_opt.use_native_kernels()
    check(meta_train(TINY, "--native --run-dir", tmp_path / "run"), 2, message)


def compiler_of(tmp_path, text):
    """A compiler that writes this as its result."""
    script = tmp_path / "compiler"
    script.write_text(f"#!/bin/sh\nfor last; do :; done\n[ $last = --version ] || printf {text} > $last\n")
    script.chmod(0o700)
    return str(script)


def test_a_result_that_is_no_library(fresh, monkeypatch, tmp_path):
    monkeypatch.setenv("CXX", compiler_of(tmp_path, "text"))
    with pytest.raises(UserError, match="cannot be loaded .*; remove the file"):
        learned_opt.use_native_kernels()


def test_a_library_that_others_could_have_written_is_not_run(fresh, monkeypatch, tmp_path):
    monkeypatch.setenv("CXX", compiler_of(tmp_path, "text"))
    with pytest.raises(UserError, match="cannot be loaded"):
        learned_opt.use_native_kernels()
    (library,) = fresh.iterdir()
    library.chmod(0o666)
    message = "can be written by other users, so the native kernel in it is not run"
    assert message in PAGE
    with pytest.raises(UserError, match=message):
        learned_opt.use_native_kernels()


def test_a_cache_folder_that_cannot_be_used(fresh, tmp_path):
    (tmp_path / "cache").write_text("a file")
    with pytest.raises(UserError, match="cannot be kept in .*; set LEARNED_OPT_CACHE"):
        learned_opt.use_native_kernels()


@pytest.mark.slow
def test_it_is_compiled_once(fresh):
    library = native._library()
    before = library.stat().st_mtime_ns
    assert native._library() == library and library.stat().st_mtime_ns == before
    assert list(fresh.iterdir()) == [library]
