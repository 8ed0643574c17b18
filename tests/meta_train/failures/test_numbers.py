"""Non-finite meta-gradients."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import learned_opt
from inner_tasks import Registration, Task, TaskSettings, task
from meta_train.run.learning import MAX_SKIPPED
from tests.meta_train.command import (
    TINY,
    lines,
    meta_train,
)
from tests.meta_train.failures.messages import check


@pytest.fixture
def noisy(monkeypatch: pytest.MonkeyPatch) -> Callable[[float], None]:
    """Register the task `noisy`: a given share of its losses is NaN, and its gradients are finite."""

    def register(share: float) -> None:
        noisy = Task(
            init=lambda key: {"w": jnp.ones(3)},
            sample=lambda share, key: jnp.where(jax.random.uniform(key) < share, jnp.nan, 0.0),
            loss=lambda params, noise: jnp.sum(params["w"] ** 2) + noise,
            metrics=lambda params, share: {},
            load=lambda data_dir: jnp.float32(share),
            horizon=10,
        )
        monkeypatch.setitem(task._REGISTRY, "noisy", Registration(lambda settings: noisy, TaskSettings()))

    return register


NOISY = f"{TINY} --task noisy --devices 2 --run-dir run"


def test_never_a_finite_meta_gradient(noisy: Callable[[float], None]) -> None:
    noisy(1.0)
    outcome = meta_train(NOISY, "--updates", 100)
    check(
        outcome, 1, "the meta-gradient was not finite 20 updates in a row", "try a smaller --estimator.sigma"
    )
    metrics = lines(Path("run"))
    assert len(metrics) == MAX_SKIPPED == 20
    assert all(line["skipped"] == 1 and line["loss"] is None for line in metrics)
    assert not Path("run/optimizer.safetensors").exists()


@pytest.mark.slow
def test_a_skipped_update_changes_nothing(noisy: Callable[[float], None], no_comparing: None) -> None:
    noisy(1.0)
    assert meta_train(NOISY, "--updates", 2).code == 0
    artifact = learned_opt.read("run")
    fresh = learned_opt.get_architecture("mlp").init_theta(jax.random.fold_in(jax.random.key(0), 0), 1)
    for a, b in zip(*map(jax.tree.leaves, (artifact.theta, fresh)), strict=True):
        np.testing.assert_array_equal(a, b)
    assert artifact.metadata["meta_training"]["final_meta_loss"] is None


def test_a_run_goes_on_after_some_skipped_updates(noisy: Callable[[float], None], no_comparing: None) -> None:
    noisy(0.02)
    outcome = meta_train(NOISY, "--updates", 40)
    assert outcome.code == 0, outcome.err
    metrics = lines(Path("run"))
    skipped = [line["skipped"] for line in metrics]
    assert 0 < sum(skipped) < 40
    for line in metrics:
        assert line["skipped"] == (line["gradient_norm"] is None) == (line["nonfinite"] > 0)
    theta = learned_opt.read("run").theta
    assert all(np.all(np.isfinite(w)) for w in jax.tree.leaves(theta))


@pytest.mark.slow
def test_the_count_of_skipped_updates_survives_a_resume(noisy: Callable[[float], None]) -> None:
    noisy(1.0)
    assert meta_train(NOISY, "--updates 100 --checkpoint-every 15").code == 1
    outcome = meta_train("--resume", "run")
    check(outcome, 1, "the meta-gradient was not finite 20 updates in a row", "up to update 20")
    assert len(lines(Path("run"))) == 20
