"""The needs of a run: how memory grows, the message of a refusal, and the printed lines."""

from __future__ import annotations

import re
from functools import partial
from pathlib import Path
from unittest import mock

import jax
import pytest

from inner_tasks import Training, find_task
from learned_opt import get_architecture
from meta_train.estimators import pes
from meta_train.outer.population import Memory, population
from tests.meta_train.command import TINY, meta_train


def needed(pairs: int = 2, truncation: int = 4, horizon: int = 20) -> Memory:
    """The needs of PES on a small digits task, on one device."""
    registration = find_task("digits-mlp")
    task = registration.build(registration.settings._replace(hidden=(8,), horizon=horizon))
    problem = Training(task.load(None), task, get_architecture("sgdm"), horizon)
    make = partial(pes, sigma=0.1, truncation=truncation)
    theta = jax.eval_shape(problem.init_theta, jax.random.key(0))
    return population(make, problem, units=pairs, devices=1).memory(theta)


def test_memory_is_flat_in_horizon_and_truncation_and_linear_in_pairs() -> None:
    two = needed()
    assert sum(needed(horizon=2000)) == pytest.approx(sum(two), rel=0.02)
    assert sum(needed(truncation=20)) == pytest.approx(sum(two), rel=0.02)
    # An MLP 64-8-10 of 610 parameters with one momentum, twice; xi of theta's 2 numbers; a position; a key.
    pair = 4 * (2 * 2 * 610)
    assert needed(pairs=10).held - two.held == pytest.approx(8 * pair, rel=0.02)


def test_the_estimate_is_printed_and_nothing_is_made(tmp_path: Path) -> None:
    run = tmp_path / "run"
    outcome = meta_train(
        TINY,
        "--optimizer sgdm --updates 20000 --estimator.particles 16 --devices 1 --estimate --run-dir",
        run,
    )
    assert outcome.code == 0, outcome.err
    assert re.search(r"memory: [\d.]+ kB on each of 1 devices \([\d.]+ kB held, [\d.]+ kB", outcome.err)
    found = re.search(r"time: ([\d.e-]+) s per update, ([\d.]+) (s|min) for 20000 updates", outcome.err)
    assert found and float(found[1]) * 20000 == pytest.approx(
        float(found[2]) * {"s": 1, "min": 60}[found[3]], rel=0.3
    )
    assert not run.exists()


def test_a_small_population_need_not_suit_the_devices(tmp_path: Path) -> None:
    """1,400 particles are divided into 175 partial sums."""
    outcome = meta_train(
        TINY,
        "--optimizer sgdm --estimator.particles 2920 --chunk 350 --devices 2 --estimate --run-dir",
        tmp_path / "run",
    )
    assert outcome.code == 0, outcome.err


@pytest.mark.parametrize(
    ("memory", "says"),
    [(10_000, "the run would need at least "), (250_000, "the run would need ")],
    ids=["for the particles", "during an update"],
)
def test_a_run_that_needs_too_much_is_refused_before_its_folder_is_made(
    memory: int, says: str, tmp_path: Path
) -> None:
    with mock.patch("meta_train.run.setup.memory_of_device", lambda: memory):
        outcome = meta_train(TINY, "--run-dir", tmp_path / "run")
    assert outcome.code == 2
    assert says in outcome.err and ("at least" in outcome.err) == ("at least" in says)
    there_is = f"{memory / 1000:.1f} kB"
    assert f"on each device, but a device has {there_is}; try a smaller --chunk (it is 1), f" in outcome.err
    assert not (tmp_path / "run").exists()
