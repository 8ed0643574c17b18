"""Several populations as one: against each alone, and in a run of `meta-train`."""

from __future__ import annotations

import json
import math
import shutil
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from inner_tasks import LinearRecurrence, Registration, TaskDistribution, TaskSettings, find_task
from inner_tasks.task import _REGISTRY
from inner_tasks.tasks import general_tasks, small_tasks
from inner_tasks.tasks.general_tasks import FAMILIES
from learned_opt import read
from meta_train.estimators import pes
from meta_train.outer.mixture import mixture
from meta_train.outer.population import Population, population
from tests.marks import slow
from tests.meta_train.command import against, lines, meta_train


@pytest.mark.parametrize("names", [("a", "b"), ("b", "a")])
def test_mean_of_the_normalised_gradients_of_each(names: tuple[str, str]) -> None:
    """In whatever order the tasks have, for JAX sorts the keys of a dict."""
    problems = [LinearRecurrence(horizon=4), LinearRecurrence(horizon=7, decay=0.5)]
    make = partial(pes, sigma=0.1, truncation=2)
    each = [population(make, problem, units=4, devices=1) for problem in problems]
    together = mixture(
        {
            name: population(make, problem, units=4, devices=2)
            for name, problem in zip(names, problems, strict=True)
        }
    )
    theta, key = jax.numpy.float32(0.3), jax.random.key(0)
    state = together.init(jax.random.key(1), theta)
    gradient, state, info = together.estimate(theta, state, key)
    found = []
    for number, one in enumerate(each):
        own = one.init(jax.random.fold_in(jax.random.key(1), number), theta)
        found.append(one.estimate(theta, own, jax.random.fold_in(key, number)))
    expected = np.mean([float(g) / abs(float(g)) for g, _, _ in found])
    assert float(gradient) == pytest.approx(expected, rel=1e-6)
    assert float(info["steps"]) == sum(float(i["steps"]) for _, _, i in found)
    assert float(info["loss"]) == pytest.approx(np.mean([float(i["loss"]) for _, _, i in found]), rel=1e-6)
    for number, (_, _, own) in enumerate(found):
        for name in ("loss", "gradient_norm", "snr"):
            assert float(info[f"{names[number]}/{name}"]) == pytest.approx(float(own[name]), rel=1e-6)
    errors = [1 / float(i["snr"]) for _, _, i in found]
    assert float(info["snr"]) == pytest.approx(abs(expected) / (np.hypot(*errors) / 2), rel=1e-5)
    gathered = together.gather(state)
    again = together.gather(together.scatter(gathered))
    jax.tree.map(np.testing.assert_array_equal, gathered, again)


def test_the_plan_of_the_memory_leaves_nothing_to_compile_for_the_estimate(
    caplog: pytest.LogCaptureFixture,
) -> None:
    problems = [LinearRecurrence(horizon=5), LinearRecurrence(horizon=6)]
    make = partial(pes, sigma=0.1, truncation=3)
    together = mixture(
        {f"{i}": population(make, problem, units=4, devices=2) for i, problem in enumerate(problems)}
    )
    theta = jax.device_put(jax.numpy.float32(0.3), jax.local_devices()[0])
    state = together.init(jax.random.key(1), theta)

    def mapped_programs(call: Callable[[], Any]) -> int:
        caplog.clear()
        jax.config.update("jax_log_compiles", True)  # in all threads, as ``jax.log_compiles`` is not
        try:
            call()
        finally:
            jax.config.update("jax_log_compiles", False)
        return sum(record.getMessage().startswith("Compiling jit(_fun)") for record in caplog.records)

    assert mapped_programs(lambda: together.memory(jax.eval_shape(lambda: theta))) == 2
    assert mapped_programs(lambda: together.estimate(theta, state, jax.random.key(0))) == 0


def test_a_task_without_gradient_counts_as_zero_and_one_that_is_not_finite_spoils_the_mean() -> None:
    def constant(gradient: float) -> Population:
        metrics = {name: jnp.float32(1) for name in ("loss", "snr", "xi_norm", "clipped", "nonfinite")}
        metrics |= {name: jnp.float32(1) for name in ("dropped", "episodes", "steps")}
        metrics |= {"gradient_norm": jnp.abs(jnp.float32(gradient))}

        def estimate(theta: Any, state: Any, key: Any) -> Any:
            return jnp.float32(gradient), state, metrics

        return Population(lambda key, theta: (), estimate, *[lambda x: x] * 3)

    def mean(*gradients: float) -> float:
        together = mixture({f"{i}": constant(g) for i, g in enumerate(gradients)})
        gradient, _, _ = together.estimate(0.0, ((),) * len(gradients), jax.random.key(0))
        return float(gradient)

    assert mean(1e-6, -3.0, 0.0, 20.0) == pytest.approx(1 / 4)
    assert np.isnan(mean(1.0, np.inf)) and np.isnan(mean(1.0, np.nan))


SMALL = (
    "--task.horizon 12 --task.hidden 8 --task.batch-size 8 --optimizer sgdm --estimator.truncation 5 "
    "--estimator.particles 4 --checkpoint-every 2 --wandb disabled"
)


def two_digits(settings: TaskSettings) -> TaskDistribution:
    wider = settings._replace(hidden=(12,))
    build = find_task("digits-mlp").build
    return TaskDistribution({"narrow": build(settings), "wide": build(wider)})


@pytest.mark.parametrize(
    ("task", "names"),
    [
        ("two-digits", ("narrow", "wide")),
        slow("small-tasks", ("digits-mlp 32, batch 64, T 12", "teacher-mlp", "text-mlp")),
        slow("general-tasks", ("digits-mlp", "table", "ratings")),
    ],
)
def test_a_run_on_a_distribution(
    task: str,
    names: tuple[str, ...],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    no_comparing: None,
) -> None:
    """It names its tasks, learns, and resumes to the same bits on another number of devices."""
    monkeypatch.setitem(_REGISTRY, "two-digits", Registration(two_digits, TaskSettings()))
    monkeypatch.setattr(small_tasks, "MEMBERS", 3)
    monkeypatch.setattr(general_tasks, "FAMILIES", {k: v for k, v in FAMILIES.items() if k in names})
    whole, parts = tmp_path / "whole", tmp_path / "parts"
    outcome = meta_train("--task", task, SMALL, "--updates 3 --devices 1 --run-dir", whole)
    assert outcome.code == 0, outcome.err
    for name in names:
        assert name in outcome.err
    shutil.copytree(whole, parts)
    shutil.rmtree(parts / "checkpoints" / "3")
    shutil.rmtree(parts / "report")
    outcome = meta_train("--resume", parts, "--devices 2")
    assert outcome.code == 0, outcome.err
    assert "at update 2" in outcome.err
    assert lines(parts) == lines(whole)
    assert (parts / "optimizer.safetensors").read_bytes() == (whole / "optimizer.safetensors").read_bytes()
    assert read(whole).architecture == "sgdm"
    assert lines(whole)[0]["steps"] == 4 * len(names) * 5  # particles, tasks, steps


def test_the_report_shows_every_member(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """It bears the name of the distribution, and the optimizer file has a card for each member."""
    monkeypatch.setitem(_REGISTRY, "two-digits", Registration(two_digits, TaskSettings()))
    monkeypatch.setattr("meta_train.report.costs.ROUNDS", 1)
    with against("adam"):
        outcome = meta_train(
            "--task two-digits --updates 1 --devices 1 --evaluation.steps 4 --evaluation.seeds 1",
            "--evaluation.learning-rates 1",
            SMALL,
            "--run-dir",
            tmp_path,
        )
    assert outcome.code == 0, outcome.err
    report = json.loads((tmp_path / "report" / "summary.json").read_text())
    assert (report["task"], report["updates"]) == ("two-digits", 1)
    shown = {each["task"]: each["optimizers"]["learned"] for each in report["comparisons"]}
    assert list(shown) == ["narrow", "wide"]
    assert shown["narrow"]["mean_loss"] != shown["wide"]["mean_loss"]
    ratios = [each["ratio_to_adam"] for each in shown.values()]
    assert report["overall"]["learned"]["ratio_to_adam"] == pytest.approx(math.prod(ratios) ** 0.5)
    assert [each["task"] for each in read(tmp_path).metadata["comparisons"]] == ["narrow", "wide"]
    assert {file.name for file in (tmp_path / "report").iterdir()} >= {"ratios.png", "table.md"}
    said = " ".join(outcome.err.split())
    assert "1 of 2: narrow" in said and "2 of 2: wide" in said and "over all tasks" in said
