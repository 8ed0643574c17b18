"""Influence balancing: short truncations move theta in the wrong direction; PES does not.

Protocol: the linear system of ``inner_tasks.problems.influence_balancing`` from theta = 0.5, never reset;
3,000 updates of plain gradient descent with learning rate 1e-4 (UORO 1e-5). K = 1, for TBPTT also 10 and 100,
with the loss taken at the end of each window. Evolution strategies have sigma = 0.1 and N particles (N/2
pairs); NRES keeps its first perturbations forever, because the episode never ends. The reported loss is that
after 500 steps with the current theta. The small scale has 400 updates and only the main methods.

Source: Vicol, Metz, Sohl-Dickstein, ICML 2021, and its published code; the system is from Tallec and
Ollivier.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
from rich.console import Console

from inner_tasks.problems.influence_balancing import InfluenceBalancing
from meta_train.estimators import Estimator, mean_of, nres, pes, rtrl, tbptt, truncated_es, uoro
from meta_train.experiments.base import Experiment, Outcome, Result, Settings, Verdict
from meta_train.experiments.descent import descend

START, OPTIMUM = 0.5, -1 / 6
SIGMA = 0.1
LEARNING_RATE = 1e-4
EVALUATION_STEPS = 500
UPDATES = {"small": 400, "paper": 3000}


class Method(NamedTuple):
    """How one method is run."""

    estimator: Estimator
    truncation: int = 1
    learning_rate: float = LEARNING_RATE
    label: str = ""


def methods(scale: str) -> dict[str, Method]:
    """The methods by name; N counts particles."""
    each_step = InfluenceBalancing()

    def backpropagation(truncation: int) -> Method:
        problem = InfluenceBalancing(loss_every=truncation)
        return Method(tbptt(problem, truncation=truncation), truncation, label=f"TBPTT, K = {truncation}")

    def many(make: partial[Estimator], particles: int, label: str) -> Method:
        return Method(mean_of(make(each_step), particles // 2), label=f"{label}, N = {particles}")

    es: dict[str, Any] = {"sigma": SIGMA, "truncation": 1}
    small = {
        "rtrl": Method(rtrl(each_step, truncation=1), label="RTRL (exact)"),
        "pes-1000": many(partial(pes, **es), 1000, "PES"),
        "truncated-es-1": many(partial(truncated_es, **es), 1000, "truncated ES, K = 1"),
        "tbptt-10": backpropagation(10),
    }
    if scale == "small":
        return small
    return small | {
        "pes-100": many(partial(pes, **es), 100, "PES"),
        "pes-10": many(partial(pes, **es), 10, "PES"),
        "nres-1000": many(partial(nres, **es), 1000, "NRES"),
        "tbptt-1": backpropagation(1),
        "tbptt-100": backpropagation(100),
        "uoro": Method(uoro(each_step, truncation=1), learning_rate=1e-5, label="UORO"),
    }


def long_run_loss(theta: jax.Array) -> jax.Array:
    """The loss after 500 steps from the start with a fixed theta, ``[] -> []``."""
    problem, key = InfluenceBalancing(), jax.random.key(0)  # the problem has no randomness
    state, losses = jax.lax.scan(
        lambda state, _: problem.step(theta, state, key), problem.init(key), length=EVALUATION_STEPS
    )
    return losses[-1]


def run(settings: Settings, console: Console) -> Result:
    """Run every method from theta = 0.5."""
    updates = UPDATES[settings.scale]
    outcomes = {
        name: descend(
            method.label,
            method.estimator,
            optax.sgd(method.learning_rate),
            jnp.asarray(START),
            long_run_loss,
            truncation=method.truncation,
            seeds=settings.seeds,
            updates=updates,
            every=10,
            folder=settings.folder / "paths" / name,
            console=console,
        )
        for name, method in methods(settings.scale).items()
    }
    return Result(outcomes, verdict(outcomes, settings.scale), checks(outcomes, settings.scale))


def checks(outcomes: dict[str, Outcome], scale: str) -> dict[str, tuple[float, float]]:
    """Single numbers with their exact values."""
    start = {"loss at theta = 0.5": (float(long_run_loss(jnp.asarray(START))), 8.0)}
    if scale == "small":
        return start
    return start | {"theta of PES": (float(np.mean(outcomes["pes-1000"].theta)), OPTIMUM)}


def verdict(outcomes: dict[str, Outcome], scale: str) -> Verdict:
    """PES follows RTRL to the optimum; truncated methods move away from it."""
    pes_loss = outcomes["pes-1000"].final_loss.max()
    exact = outcomes["rtrl"].final_loss.max()
    truncated = outcomes["truncated-es-1"].final_loss.min()
    diverged = outcomes["tbptt-10"].final_loss.min()
    text = f"after {outcomes['rtrl'].curve['update'][-1]:,} updates from a loss of 8: "
    if scale == "small":
        # Still descending, where PES is noisier than at the end.
        holds = pes_loss < 1 and truncated > 8 and not diverged <= 8
        text += f"RTRL {exact:.2g}, PES (N = 1000) {pes_loss:.2g} at most (expected: below 1)"
        expected = "8"
    else:
        distance = np.abs(outcomes["pes-1000"].theta - OPTIMUM).max()
        holds = pes_loss < 1e-9 and truncated > 100 and not diverged <= 1e6 and distance < 1e-4
        text += (
            f"RTRL {exact:.2g}, PES (N = 1000) {pes_loss:.2g} at most (expected: below 1e-9), "
            f"its theta within {distance:.1g} of -1/6 (expected: 1e-4)"
        )
        expected = "100"
    text += (
        f"; truncated ES {truncated:.3g} at least (expected: above {expected}), TBPTT with K = 10 "
        f"{diverged:.2g} (expected: diverging)"
    )
    return Verdict(bool(holds), text)


def draw(result: Result, folder: Path) -> Sequence[Path]:
    """Draw loss and theta over updates."""
    from meta_train.experiments.drawing import draw_losses, styles
    from meta_train.report.figures import picture

    every = methods("paper")
    labels = {name: every[name].label for name in result.methods}
    path = folder / "influence_balancing.png"
    with picture(path, ncols=2, figsize=(11, 4.2)) as (_, (left, right)):
        draw_losses(left, result.methods, labels)
        left.set(
            xlabel="outer update",
            ylabel=f"loss after {EVALUATION_STEPS} steps",
            yscale="log",
            ylim=(1e-13, 1e14),
            title="loss: median and range over seeds",
        )
        for name, style in styles(result.methods).items():
            curve = result.methods[name].curve
            right.plot(curve["update"], np.median(curve["theta"][..., 0], axis=0), lw=1.5, **style)
        right.axhline(OPTIMUM, color="grey", lw=0.8)
        right.annotate("optimum, -1/6", (0, OPTIMUM), xytext=(2, 3), textcoords="offset points", fontsize=8)
        right.set(xlabel="outer update", ylabel="theta", ylim=(-1, 2), title="theta: median over seeds")
        handles, names = left.get_legend_handles_labels()
        right.legend(handles, names, fontsize=8, loc="upper left", bbox_to_anchor=(1, 1))
    return [path]


EXPERIMENT = Experiment(
    name="influence-balancing",
    summary="a linear system where short truncations learn in the wrong direction",
    source="Vicol, Metz, Sohl-Dickstein, ICML 2021, section 5 (influence balancing); Tallec, Ollivier, 2018",
    run=run,
    draw=draw,
    protocol=__doc__,
)
