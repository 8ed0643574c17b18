"""Meta-training of a part of theta."""

from __future__ import annotations

import shutil
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import learned_opt
import meta_train as interface
from learned_opt import UserError, as_optax, get_architecture
from meta_train.outer.parts import completed, learning_part, part_of
from tests.meta_train.command import TINY, Run, meta_train

THETA = {"a": {"w": jnp.ones(2), "b": jnp.zeros(1)}, "ab": {"w": jnp.full(3, 2.0)}}


@pytest.mark.parametrize(
    ("names", "found"),
    [(["a"], {"a": {"w", "b"}}), (["a/w"], {"a": {"w"}}), (["ab", "a/b"], {"a": {"b"}, "ab": {"w"}})],
)
def test_a_part_has_the_weights_that_are_named(names: list[str], found: dict[str, set[str]]) -> None:
    part = part_of(THETA, names)
    assert {name: set(own) for name, own in part.items()} == found
    jax.tree.map(np.testing.assert_array_equal, completed(THETA, part), THETA)
    moved = completed(THETA, jax.tree.map(lambda w: w + 1, part))
    assert sum(float(jnp.sum(w)) for w in jax.tree.leaves(moved)) == 8 + sum(
        w.size for w in jax.tree.leaves(part)
    )


@pytest.mark.parametrize("name", ["", "b", "a/", "a/w/x", "A"])
def test_an_unknown_part(name: str) -> None:
    with pytest.raises(
        UserError, match=f"--learn names '{name}', but the weights of this .* are a/b, a/w, ab/w"
    ):
        part_of(THETA, ["a", name])


def test_the_other_parts_are_used_as_they_are() -> None:
    full = get_architecture("muon-mlp")
    theta = jax.tree.map(lambda w: w + 0.1, full.init_theta(jax.random.key(0), 1))
    partly = learning_part(full, theta, ["step/Dense_1", "schedule"])
    initial = partly.init_theta(jax.random.key(7), 3)
    assert sum(w.size for w in jax.tree.leaves(initial)) == 8 * 2 + 2 + 4 * 2
    param = gradient = jax.random.normal(jax.random.key(1), (3, 4))
    for part in (initial, jax.tree.map(lambda w: w - 0.3, initial)):
        one, other = (
            as_optax(*what, num_steps=9) for what in ((partly, part), (full, completed(theta, part)))
        )
        updates = [tx.update(gradient, tx.init(param), param)[0] for tx in (one, other)]
        np.testing.assert_array_equal(*updates)
        assert np.any(updates[0] != 0)


def test_a_run_learns_only_a_part(tiny_run: Run, tmp_path: Path, no_comparing: None) -> None:
    """The file has all weights, and a resumed run has the same file."""
    run = tmp_path / "run"
    flags = ("--updates 2 --checkpoint-every 1 --devices 2 --learn Dense_1 Dense_2/bias --run-dir", run)
    outcome = meta_train(TINY, *flags, "--start-from", tiny_run.path)
    assert outcome.code == 0, outcome.err
    before, after = learned_opt.read(tiny_run.path), learned_opt.read(run)
    assert after.metadata["meta_training"]["learn"] == ["Dense_1", "Dense_2/bias"]
    changed = jax.tree.map(lambda a, b: bool(np.any(a != b)), before.theta, after.theta)
    assert changed == {
        "Dense_0": {"kernel": False, "bias": False},
        "Dense_1": {"kernel": True, "bias": True},
        "Dense_2": {"kernel": False, "bias": True},
    }
    shutil.rmtree(run / "checkpoints" / "2")
    shutil.rmtree(run / "report")
    assert meta_train("--resume", run).code == 0
    assert learned_opt.read(run).metadata == after.metadata
    jax.tree.map(np.testing.assert_array_equal, learned_opt.read(run).theta, after.theta)


def test_a_function_learns_only_a_part() -> None:
    settings = {"horizon": 5, "hidden": (4,), "optimizer": "adam", "particles": 2, "truncation": 5}
    learned = interface.learn("digits-mlp", updates=1, learn=("log_power",), show=False, **settings)
    fresh = get_architecture("adam").init_theta(jax.random.key(0), 1)
    changed = {name: bool(np.any(learned.theta[name] != fresh[name])) for name in fresh}
    assert learned.theta.keys() == fresh.keys()
    assert changed == dict.fromkeys(fresh, False) | {"log_power": True}


def test_a_part_that_does_not_exist(tmp_path: Path) -> None:
    outcome = meta_train(TINY, "--learn nonsense --run-dir", tmp_path / "run")
    assert outcome.code == 2 and "--learn names 'nonsense', but the weights" in outcome.err
    assert not (tmp_path / "run").exists()
