"""Meta-training as a function: the same as the command, interrupted, on a task of one's own, and shown."""

from __future__ import annotations

import dataclasses
import signal
import subprocess
import sys
import threading
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import learned_opt
import meta_train
from inner_tasks import Task, TaskDistribution
from learned_opt import UserError
from meta_train.run import learning
from tests.meta_train.command import Run, lines, without_comparing

# The settings of ``tests.meta_train.command.TINY``.
TINY: dict[str, Any] = {
    "horizon": 10,
    "hidden": [4],
    "objective": "training-loss",
    "optimizer": "mlp",
    "learning_rate": 0.02,
    "sigma": 0.03,
    "truncation": 4,
    "particles": 8,
    "updates": 3,
    "devices": 2,
}
BOWL = Task(
    init=lambda key: {"w": jax.random.normal(key, (3,))},
    sample=lambda data, key: jax.random.normal(key, (3,)),
    loss=lambda params, batch: jnp.sum((params["w"] - 0.1 * batch) ** 2),
    metrics=lambda params, data: {"distance": jnp.linalg.norm(params["w"])},
    load=lambda data_dir: None,
    horizon=6,
)
QUICK: dict[str, Any] = {"optimizer": "sgdm", "truncation": 3, "particles": 4, "devices": 1, "show": False}


def assert_same(learned: meta_train.Learned, run: Run) -> None:
    jax.tree.map(np.testing.assert_array_equal, learned.theta, learned_opt.read(run.path).theta)
    for record, line in zip(learned._records, lines(run.path), strict=True):
        assert {k: v for k, v in record.items() if k != "seconds"} == line


def test_it_learns_what_the_command_learns(tiny_run: Run, tmp_path: Path) -> None:
    """Interrupted and continued, to the bit; the file differs only in the comparison."""
    interrupted = pytest.MonkeyPatch()
    record = learning._record

    def recorded(update: Any) -> learning.Record:
        if update.number == 1:
            signal.raise_signal(signal.SIGINT)
        return record(update)

    interrupted.setattr(learning, "_record", recorded)
    learned = meta_train.learn("digits-mlp", **TINY)
    interrupted.undo()
    assert repr(learned) == "Learned(mlp on digits-mlp, 1 of 3 updates)"
    assert_same(learned.learn_more(), tiny_run)
    assert learned.metrics["loss"].shape == (3,)

    assert learned._repr_png_().startswith(b"\x89PNG")  # type: ignore[union-attr]
    with without_comparing(tiny_run.comparison):
        compared = learned.compare(steps=5, seeds=1, learning_rates=3)
    assert "Adam" in repr(compared) and "<pre" in compared._repr_html_()
    assert compared.plot()._repr_png_().startswith(b"\x89PNG")
    assert compared.ratio_to_adam == tiny_run.comparison.ratio_to_adam("learned")
    learned.save(tmp_path / "own.safetensors")
    assert (tmp_path / "own.safetensors").read_bytes() == tiny_run.optimizer

    params = {"w": jnp.linspace(-1, 1, 6).reshape(2, 3)}
    own, loaded = learned.optax(), learned_opt.load(tiny_run.path)
    steps = [tx.update(params, tx.init(params), params)[0]["w"] for tx in (own, loaded)]
    np.testing.assert_array_equal(*steps)


def test_a_task_of_ones_own_and_a_distribution_in_a_thread(own_registry: None) -> None:
    found: list[meta_train.Learned] = []

    def learn() -> None:
        tasks = TaskDistribution({"bowl": BOWL, "long bowl": dataclasses.replace(BOWL, horizon=9)})
        found.append(meta_train.learn(tasks, name="bowls", updates=2, **QUICK))

    alone = meta_train.learn(BOWL, name="bowl", updates=2, horizon=5, **QUICK)
    assert repr(alone) == "Learned(sgdm on bowl, 2 of 2 updates)" and alone.config.task.horizon == 5
    thread = threading.Thread(target=learn)
    thread.start()
    thread.join()
    assert "long bowl/loss" in found[0].metrics
    assert len(found[0].learn_more(2).metrics["loss"]) == 4


def test_it_starts_from_weights(tiny_run: Run, tmp_path: Path) -> None:
    """And takes their architecture."""
    settings = {name: value for name, value in TINY.items() if name != "optimizer"} | {"updates": 1}
    learned = meta_train.learn("digits-mlp", start_from=tiny_run.path, **settings)
    assert learned.config.optimizer == "mlp"
    learned.save(tmp_path / "own.safetensors")
    made = learned_opt.read(tmp_path / "own.safetensors").metadata["meta_training"]
    assert made["start_from"] == learned_opt.read(tiny_run.path).metadata["digest"]


@pytest.mark.parametrize(
    "settings, said",
    [
        ({"sgima": 0.1}, "learn has no setting 'sgima'; .* did you mean 'sigma'"),
        ({"sigma": "0.1"}, "sigma is '0.1'; it must be of the type float"),
        ({"hidden": 4}, "hidden is 4; it must be of the type tuple"),
        ({"updates": 0}, "updates is 0; it must be at least 1"),
        ({"updates": "3"}, "updates is '3'; it must be of the type int"),
        ({"devices": "2"}, "devices is '2'; it must be a number or 'auto'"),
        ({"chunk": "two"}, "chunk is 'two'; it must be a number or 'auto'"),
        ({"perturbation_period": "4"}, "perturbation_period is '4'; it must be a number of steps"),
        ({"estimator": "pez"}, "unknown estimator 'pez'.*did you mean 'pes'"),
    ],
)
def test_a_wrong_setting_is_named(settings: dict[str, Any], said: str) -> None:
    with pytest.raises(UserError, match=said):
        meta_train.learn("digits-mlp", **settings)


def test_an_object_fixes_its_widths(own_registry: None) -> None:
    with pytest.raises(UserError, match="given as an object fixes hidden itself"):
        meta_train.learn(BOWL, hidden=[3])
    with pytest.raises(UserError, match="given as an object fixes horizon itself"):
        meta_train.learn(TaskDistribution({"bowl": BOWL}), horizon=3)


def test_an_object_does_not_take_the_name_of_a_task(own_registry: None) -> None:
    with pytest.raises(UserError, match="a task of this package is called 'digits-mlp'"):
        meta_train.learn(BOWL, name="digits-mlp")


def test_pictures_leave_pyplot_alone() -> None:
    """With another backend, a notebook would no longer show the pictures of its user."""
    code = "import sys, meta_train.report.figures; sys.exit('matplotlib.pyplot' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], cwd=Path(__file__).parents[2]).returncode == 0
