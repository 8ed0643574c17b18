"""The experiments of `pes-paper`, in their quick versions, and the problems that they unroll."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from rich.console import Console

from inner_tasks.problems.influence_balancing import InfluenceBalancing
from inner_tasks.problems.toy_regression import ToyRegression
from meta_train.commands import pes_paper as pes_paper_command
from meta_train.estimators import mean_of, pes, rtrl
from meta_train.experiments import EXPERIMENTS
from meta_train.experiments.base import (
    Experiment,
    NoOptions,
    Outcome,
    Result,
    Settings,
    Verdict,
    write_result,
)
from meta_train.experiments.toy_regression import axis, smoothed, surface
from tests.meta_train.command import pes_paper

KEY = jax.random.key(0)


def unrolled(problem: Any, theta: Any, steps: int) -> tuple[Any, jax.Array]:
    return jax.lax.scan(lambda state, _: problem.step(theta, state, KEY), problem.init(KEY), length=steps)


def test_influence_balancing_is_the_matrix_of_its_definition():
    matrix = 0.5 * np.eye(23) + 0.5 * np.eye(23, k=1)
    push = np.where(np.arange(23) < 10, 1, -1)
    s, theta = np.ones(23), 0.3
    for _ in range(40):
        s = matrix @ s + theta * push
    state, losses = unrolled(InfluenceBalancing(), 0.3, 40)
    np.testing.assert_allclose(state.s, s, rtol=1e-5, atol=1e-5)
    np.testing.assert_allclose(losses[-1], 0.5 * (s[0] - 1) ** 2, rtol=1e-4)


# ds_0 / dtheta over K steps: the sign turns between 40 and 50.
@pytest.mark.parametrize(
    "steps, sensitivity",
    [(1, 1), (10, 10), (20, 16.48), (30, 9.87), (40, 0.57), (50, -4.75), (60, -5.90), (100, -6.00)],
)
def test_influence_of_theta_turns_round_in_the_long_run(steps: int, sensitivity: float):
    slope = jax.jacfwd(lambda theta: unrolled(InfluenceBalancing(), theta, steps)[0].s[0])(0.5)
    assert round(float(slope), 2) == sensitivity


def test_influence_balancing_takes_its_loss_at_the_end_of_windows():
    _, losses = unrolled(InfluenceBalancing(loss_every=5), 0.5, 10)
    _, every = unrolled(InfluenceBalancing(), 0.5, 10)
    np.testing.assert_array_equal(losses, np.where(np.arange(1, 11) % 5 == 0, every, 0))


@pytest.mark.parametrize("theta, loss", [((-4, -4), 2487.77), ((0, 0), 2423.47), ((2, 2), 807.10)])
def test_toy_regression_has_the_exact_values_of_its_surface(theta: tuple[int, int], loss: float):
    assert round(float(ToyRegression().meta_loss(jnp.array(theta, float))), 2) == loss


def test_smoothing_a_surface_is_a_mean_over_perturbed_thetas():
    values = surface(ToyRegression(), 261, "surface", Console(quiet=True))
    ends = axis(261)
    row, column = np.abs(ends - 2.8).argmin(), np.abs(ends + 2.0).argmin()
    theta = jnp.array([ends[row], ends[column]])
    perturbed = theta + 0.3 * jax.random.normal(KEY, (20_000, 2))
    losses = np.asarray(jax.jit(jax.vmap(ToyRegression().meta_loss))(perturbed), np.float64)
    error = losses.std() / np.sqrt(len(losses))
    assert abs(smoothed(values, 0.3)[row, column] - losses.mean()) < 3 * error + 1


def test_mean_of_copies_is_their_mean():
    problem, theta = ToyRegression(), jnp.array([-1.0, -2.0])
    one = pes(problem, sigma=0.1, truncation=10)
    many = mean_of(one, 3)
    gradient, state, info = jax.jit(many.estimate)(theta, many.init(KEY, theta, 0.0), jax.random.key(1))
    alone = [
        jax.jit(one.estimate)(theta, one.init(init_key, theta, 0.0), key)
        for init_key, key in zip(
            jax.random.split(KEY, 3), jax.random.split(jax.random.key(1), 3), strict=True
        )
    ]
    np.testing.assert_allclose(gradient, np.mean([g for g, *_ in alone], axis=0), rtol=1e-4)
    np.testing.assert_allclose(state.carried.xi, [s.carried.xi for _, s, _ in alone], rtol=1e-6)
    assert float(info["steps"]) == 3 * 2 * 10 and float(info["units"]) == 3


def test_rtrl_on_influence_balancing_is_the_table(tmp_path: Path):
    """Exact descent: the losses after some updates, computed independently of this package."""
    from meta_train.experiments.descent import descend
    from meta_train.experiments.influence_balancing import START, long_run_loss

    outcome = descend(
        "",
        rtrl(InfluenceBalancing(), truncation=1),
        optax.sgd(1e-4),
        jnp.asarray(START),
        long_run_loss,
        truncation=1,
        seeds=(0,),
        updates=1000,
        every=100,
        folder=tmp_path,
        console=Console(quiet=True),
    )
    assert not list(tmp_path.iterdir())  # short runs save nothing
    loss = dict(zip(outcome.curve["update"].tolist(), outcome.curve["loss"][0], strict=True))
    np.testing.assert_allclose(
        [loss[0], loss[100], loss[500], loss[1000]], [8, 2.07, 1.04e-2, 1.34e-5], rtol=5e-3
    )


def test_a_stopped_descent_goes_on(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """Stopped in its middle, it gives the same bits; after its end, it does nothing again."""
    from meta_train.experiments import descent

    shown: list[int] = []

    def run(folder: str, stopped_at: int = 0) -> Outcome:
        def advance(self: object, update: int, *_: float) -> None:
            shown.append(update)
            if update == stopped_at:
                raise KeyboardInterrupt

        monkeypatch.setattr(descent.ProgressLine, "advance", advance)
        return descent.descend(
            "",
            mean_of(pes(InfluenceBalancing(), sigma=0.1, truncation=1), 2),
            optax.adam(1e-2),
            jnp.float32(0.5),
            jnp.square,
            truncation=1,
            seeds=(3, 4),
            updates=10,
            every=2,
            folder=tmp_path / folder,
            console=Console(quiet=True),
        )

    whole = run("whole")
    assert whole.curve["theta"].shape == (2, 6, 1) and whole.curve["steps"][-1] == 10 * 4
    monkeypatch.setattr(descent, "SAVE_EVERY_SECONDS", 0.0)
    with pytest.raises(KeyboardInterrupt):
        run("parts", stopped_at=6)
    shown.clear()
    jax.tree.map(np.testing.assert_array_equal, run("parts"), whole)
    assert shown == [6, 8, 10]
    jax.tree.map(np.testing.assert_array_equal, run("parts"), whole)
    assert shown == [6, 8, 10]


# The others are in test_tuning.py.
QUICK = [name for name, experiment in EXPERIMENTS.items() if not experiment.spread]


@pytest.mark.slow
@pytest.mark.parametrize("name", QUICK)
def test_small_experiments_hold(name: str, tmp_path: Path, optimized: None):
    """Run every experiment without a real task, at the small scale with one seed, by the command."""
    folder = tmp_path / name
    ended = pes_paper(name, "--seeds 0 --out", folder)
    assert ended.code == 0, ended.err
    assert "\nholds: " in ended.out
    result = json.loads((folder / "result.json").read_text())
    assert (result["experiment"], result["scale"], result["seeds"]) == (name, "small", [0])
    assert result["verdict"]["holds"] is True and result["verdict"]["text"] in ended.out.replace("\n", " ")
    assert len(result["methods"]) >= 2
    for method in result["methods"].values():
        assert set(method) == {"final_loss", "theta", "curve"}
        assert len(method["final_loss"]) == len(method["theta"]) == 1
    for check in result["checks"].values():
        assert check["measured"] == pytest.approx(check["expected"], rel=0.1)
    pictures = list(folder.glob("*.png"))
    assert pictures and all(picture.stat().st_size > 10_000 for picture in pictures)


@dataclass(frozen=True)
class Targets:
    """The options of a fake experiment."""

    target: str = "a"


def an_experiment(holds: bool) -> Experiment:
    losses = np.array([1.0, np.inf])
    outcome = Outcome(losses, np.array([[0.1], [np.nan]]), {"update": np.arange(3)})
    return Experiment(
        "nothing",
        "shows nothing",
        "made up",
        run=lambda settings, console: Result({"pes": outcome}, Verdict(holds, "text")),
        draw=lambda result, folder: [],
        protocol="Nothing: it shows nothing.\n\nProtocol: none.\n",
    )


def test_results_are_strict_json(tmp_path: Path):
    experiment = an_experiment(True)
    settings = Settings("small", (0, 1))
    write_result(experiment, settings, experiment.run(settings, Console(quiet=True)), tmp_path)
    result = json.loads((tmp_path / "result.json").read_text(), parse_constant=pytest.fail)
    assert result["methods"]["pes"] == {
        "final_loss": [1.0, None],
        "theta": [[0.1], [None]],
        "curve": {"update": [0, 1, 2]},
    }


def test_what_does_not_hold_is_a_failure(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """The result is still written."""
    monkeypatch.setitem(EXPERIMENTS, "nothing", an_experiment(False))
    ended = pes_paper("nothing --out", tmp_path / "out")
    assert ended.code == 1
    assert "does not hold" in ended.out and "does not hold" in ended.err
    assert (tmp_path / "out" / "result.json").exists()


def test_all_experiments_make_a_page(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """Experiments with a result are not run again, and one that does not hold does not stop the others."""
    ran = []

    def noted(holds: bool, options: type) -> Experiment:
        experiment = an_experiment(holds)

        def run(settings, console):
            ran.append((holds, str(settings.options)))
            return experiment.run(settings, console)

        variants = (Targets("a"), Targets("b")) if options is Targets else ()
        return experiment._replace(name=f"it-{holds}", run=run, options=options, variants=variants)

    made_up = {"it-False": noted(False, NoOptions), "it-True": noted(True, Targets)}
    monkeypatch.setattr(pes_paper_command, "EXPERIMENTS", made_up)
    out = tmp_path / "out"
    ended = pes_paper("all --seeds 5 --out", out)
    assert ended.code == 1 and "the claim does not hold in this run for: it-False" in ended.err
    assert ran == [(False, "NoOptions()"), (True, "Targets(target='a')"), (True, "Targets(target='b')")]
    page = (out / "paper.md").read_text()
    assert "| [it-False](#it-False) | it shows nothing. | Does not hold |" in page
    assert (
        "## it-True-b\n\nNothing: it shows nothing.\n\n**Holds** at the small scale, seeds 5: text." in page
    )
    assert page.count("Protocol: none.") == 3
    (out / "it-True-b" / "result.json").unlink()
    assert pes_paper("all --seeds 5 --resume", out).code == 1
    assert ran[3:] == [(True, "Targets(target='b')")]


def test_experiments_are_listed():
    ended = pes_paper("list")
    assert ended.code == 0
    assert [line.split()[0] for line in ended.out.splitlines()] == list(EXPERIMENTS)


@pytest.mark.parametrize(
    "arguments, message",
    [
        ("toy-regresion", "unknown experiment 'toy-regresion'; available: influence-balancing"),
        ("toy-regresion", "did you mean 'toy-regression'?"),
        ("toy-regression --seeds 1 1", "--seeds is (1, 1); give at least one seed, and no seed twice"),
        ("toy-regression --seeds", "give at least one seed"),
        ("toy-regression --seeds -1", "a seed must lie between 0 and 4294967295"),
        ("toy-regression --text book.txt", "--text"),
        ("toy-regression --out a --resume b", "--out names a new folder and --resume an existing one"),
        ("variance --text missing --out a", "cannot read the text missing"),
    ],
)
def test_bad_arguments_are_refused_before_anything_is_run(
    arguments: str, message: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.chdir(tmp_path)
    ended = pes_paper(arguments)
    assert ended.code == 2
    assert message in ended.err
    assert list(tmp_path.iterdir()) == []


def test_results_are_never_written_over(tmp_path: Path):
    (tmp_path / "result.json").write_text("mine")
    ended = pes_paper("toy-regression --out", tmp_path)
    assert ended.code == 2
    assert f"the result folder {tmp_path} exists and is not empty; choose another with --out" in ended.err
    assert (tmp_path / "result.json").read_text() == "mine"
