"""MNIST schedule: PES moves into the basin of good learning rates; truncated ES ends outside it.

Protocol: an MLP 784-100-100-10 is trained on MNIST for T = 5,000 steps with minibatches of 100, by SGD with
momentum 0.9 and the schedule ``lr_t = exp(theta_0) / (1 + t / 5000)^exp(theta_1)``, from theta = (log 0.003,
log 30). K is 10 and 100, N = 1,000 particles, sigma = 0.1; 5,000 updates of Adam with a learning rate of
1e-2. ``--target train-loss`` lowers the loss of a fresh minibatch after each step; ``--target
validation-accuracy`` raises the accuracy on a minibatch of validation images, which has no derivative. Both
are summed over an episode. The surface is a grid of schedules, each evaluated by training with it.

Unlike in the published code, particles start their first episodes at different stages and have different
initialisations. The small scale has images of 14x14 pixels, one hidden layer of 32 units, T = 1,000 (also the
time scale of the schedule), an outer learning rate of 3e-2, and 500 updates with N = 64 for K = 10, or 360
updates with N = 16 for K = 100 (the fewer windows an episode has, the less noise).

Source: Vicol, Metz, Sohl-Dickstein, ICML 2021, and its published code.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, Literal, NamedTuple

import jax
import numpy as np
import optax
from matplotlib.axes import Axes
from rich.console import Console

from inner_tasks import TaskSettings, Training, find_objective
from inner_tasks.tasks.images import mlp_task
from learned_opt import LearnedOptimizer
from learned_opt._src.architectures.sgdm import ZERO, Accumulators, heavy_ball
from learned_opt._src.architectures.tunable import inverse_time_decay, tunable
from meta_train.estimators import pes, truncated_es
from meta_train.experiments.base import (
    Claim,
    Experiment,
    Outcome,
    Result,
    Settings,
    Verdict,
    is_above,
    judged,
)
from meta_train.experiments.learning import learn, mean_losses

TRUNCATIONS = (10, 100)
SIGMA = 0.1
MOMENTUM = 0.9
BATCH_SIZE = 100
START = {"log_learning_rate": math.log(0.003), "log_power": math.log(30)}
METHODS = {"pes": (pes, "PES"), "truncated-es": (truncated_es, "truncated ES")}
# Edges of the grid: log10 of the learning rate at the start, and of the power of its decay.
RATES, POWERS = (-3.0, -0.5), (-2.2, 2.2)
RECORDS = 20
# This many of the best points of the grid are run again on more seeds, to find the best value.
CANDIDATES = 8


class Protocol(NamedTuple):
    """The settings that differ between scales."""

    hidden: tuple[int, ...]
    pool: int  # images are smaller by this factor
    horizon: int
    particles: Mapping[int, int]  # for each K
    updates: Mapping[int, int]  # for each K
    learning_rate: float  # of the outer Adam
    grid: int  # points per axis
    grid_runs: int  # seeds for each point of the grid
    runs: int  # seeds for each theta of a path, and for the best of the grid


PROTOCOLS = {
    "small": Protocol((32,), 2, 1000, {10: 64, 100: 16}, {10: 500, 100: 360}, 3e-2, 21, 1, 4),
    "paper": Protocol((100, 100), 1, 5000, {10: 1000, 100: 1000}, {10: 5000, 100: 5000}, 1e-2, 40, 2, 10),
}


class Target(NamedTuple):
    """The goal that a schedule is tuned for."""

    objective: str
    label: str
    sign: int  # -1 if the meta-loss is the negative of the value shown, as for an accuracy

    def edge(self, best: float) -> float:
        """The worst value that counts as in the basin of the best: 5% of a loss, or one point of accuracy."""
        return 1.05 * best if self.sign > 0 else best - 0.01


TargetName = Literal["train-loss", "validation-accuracy"]
TARGETS: dict[TargetName, Target] = {
    "train-loss": Target("later-training-loss", "training loss, mean over an episode", 1),
    "validation-accuracy": Target("validation-accuracy", "validation accuracy, mean over an episode", -1),
}


@dataclass(frozen=True)
class Options:
    """Options of this experiment."""

    target: TargetName = "train-loss"
    """Quantity that the schedule is tuned for."""


def schedule(time_scale: float) -> LearnedOptimizer:
    """SGD with momentum and the learning-rate schedule ``inverse_time_decay``."""

    def rule(
        own: Mapping[str, jax.Array], gradient: jax.Array, accumulators: Accumulators, count: jax.Array
    ) -> tuple[jax.Array, Accumulators]:
        rate = inverse_time_decay(own["log_learning_rate"], own["log_power"], count, time_scale)
        return heavy_ball(gradient, accumulators, rate, MOMENTUM)

    return tunable(rule, ZERO, START, per_block=False)


def tuning(protocol: Protocol, target: Target, data_dir: Path | None) -> Training:
    """Training with a schedule, as an unrolled problem."""
    settings = TaskSettings(protocol.hidden, BATCH_SIZE, protocol.horizon)
    task = mlp_task("mnist", settings, pool=protocol.pool)
    objective = find_objective(target.objective, task)
    return Training(task.load(data_dir), task, schedule(protocol.horizon), protocol.horizon, objective)


def grid(points: int) -> np.ndarray:
    """Thetas, ``[points * points, 2]``; the power varies fastest."""
    rates, powers = np.linspace(*RATES, points), np.linspace(*POWERS, points)
    return np.log(10) * np.stack(np.meshgrid(rates, powers, indexing="ij"), axis=-1).reshape(-1, 2)


def run(settings: Settings, console: Console) -> Result:
    """Run both methods with both truncations, and compute the surface that they move on."""
    protocol, target = PROTOCOLS[settings.scale], TARGETS[settings.options.target]
    problem = tuning(protocol, target, settings.data_dir)
    paths = {
        f"{name}-{truncation}": _descend(name, truncation, protocol, problem, settings, console)
        for name in METHODS
        for truncation in TRUNCATIONS
    }
    like = problem.init_theta(jax.random.key(0))

    def shown(thetas: np.ndarray, runs: int, label: str) -> np.ndarray:
        """Mean loss (or accuracy) over an episode, for thetas ``[..., 2]``."""
        losses = mean_losses(problem, thetas, like, runs, label=label, settings=settings, console=console)
        return target.sign * losses

    every = grid(protocol.grid)
    surface = shown(every, protocol.grid_runs, "grid")
    best = every[np.argsort(target.sign * surface)[:CANDIDATES]]
    best_value = target.sign * np.min(target.sign * shown(best, protocol.runs, "best of the grid"))
    outcomes = {}
    for name, path in paths.items():
        values = shown(path["theta"], protocol.runs, f"path of {name}")
        outcomes[name] = Outcome(values[:, -1], path["theta"][:, -1], {**path, "value": values})
    return Result(
        outcomes,
        verdict(outcomes, float(best_value), target),
        pictured={"surface": surface.reshape(protocol.grid, -1), "best": best_value, "target": target},
    )


def _descend(
    name: str,
    truncation: int,
    protocol: Protocol,
    problem: Training,
    settings: Settings,
    console: Console,
) -> dict[str, np.ndarray]:
    """The path of one method, over all seeds."""
    make, label = METHODS[name]
    updates = protocol.updates[truncation]
    return learn(
        f"{name}-{truncation}",
        f"{label}, K = {truncation}",
        partial(make, sigma=SIGMA, truncation=truncation, chunk=settings.chunk),
        problem,
        optax.adam(protocol.learning_rate),
        problem.init_theta,
        pairs=protocol.particles[truncation] // 2,
        updates=updates,
        every=updates // RECORDS,
        settings=settings,
        console=console,
    )


def verdict(outcomes: Mapping[str, Outcome], best: float, target: Target) -> Verdict:
    """With either K, PES ends in the basin of the best of the grid; truncated ES ends outside, and worse."""

    def is_worse(bad: tuple[str, np.ndarray], good: tuple[str, np.ndarray]) -> Claim:
        return is_above(bad, good) if target.sign > 0 else is_above(good, bad)

    said, claims = [], []
    for truncation in TRUNCATIONS:
        own = outcomes[f"pes-{truncation}"].final_loss
        truncated = outcomes[f"truncated-es-{truncation}"].final_loss
        said.append(
            f"K = {truncation}: PES {own.min():.4f} to {own.max():.4f} over seeds, truncated ES "
            f"{truncated.min():.4f} to {truncated.max():.4f}"
        )
        inside = target.sign * own <= target.sign * target.edge(best)
        edge = ("the edge of the basin", np.full(truncated.shape, target.edge(best)))
        labelled = (f"truncated ES with K = {truncation}", truncated)
        claims += [
            Claim(
                bool(inside.all()), f"PES with K = {truncation} in the basin in {inside.sum()} of {own.size}"
            ),
            is_worse(labelled, edge),
            is_worse(labelled, (f"PES with K = {truncation}", own)),
        ]
    allowed = "5% above that" if target.sign > 0 else "a point below that"
    text = f"{target.label}; best of the grid {best:.4f}, edge of its basin {allowed}; "
    return judged(text + "; ".join(said), *claims)


def draw(result: Result, folder: Path) -> Sequence[Path]:
    """Draw the paths on the surface for each K, and the quality of their schedules over inner steps."""
    from meta_train.experiments.drawing import draw_losses, styles
    from meta_train.report.figures import picture

    target = result.pictured["target"]
    path = folder / "mnist_schedule.png"
    with picture(path, ncols=3, figsize=(14, 4.4)) as (figure, (*surfaces, last)):
        for axes, truncation in zip(surfaces, TRUNCATIONS, strict=True):
            image = _draw_surface(axes, result.pictured["surface"], target)
            for name, (_, label) in METHODS.items():
                style = styles({name: None})[name]
                for number, seed in enumerate(result.methods[f"{name}-{truncation}"].theta):
                    way = result.methods[f"{name}-{truncation}"].curve["theta"][number] / math.log(10)
                    axes.plot(*way.T, lw=1.2, label=None if number else label, **style)
                    axes.plot(*(seed / math.log(10)), "o", ms=5, color=style["color"], mec="white")
            axes.plot(
                *(np.array(list(START.values())) / math.log(10)), "*", color="white", ms=11, mec="black"
            )
            axes.set(
                title=f"K = {truncation}: from the star to the dots",
                xlim=(RATES[0] - 0.1, RATES[1] + 0.6),
                ylim=(POWERS[0] - 0.1, POWERS[1] + 0.6),
            )
        surfaces[0].legend(loc="lower left", fontsize=8)
        figure.colorbar(image, ax=surfaces, label=target.label)
        labels = {
            f"{name}-{truncation}": f"{label}, K = {truncation}"
            for name, (_, label) in METHODS.items()
            for truncation in TRUNCATIONS
        }
        draw_losses(last, result.methods, labels, x="steps", y="value")
        last.axhline(result.pictured["best"], color="black", lw=0.9, ls="--", label="best of the grid")
        last.set(
            xlabel="inner steps of all particles", ylabel=target.label, title="median and range over seeds"
        )
        if target.sign > 0:
            last.set_yscale("log")
        last.ticklabel_format(axis="x", scilimits=(0, 0))
        last.legend(fontsize=8)
    return [path]


def _draw_surface(axes: Axes, surface: np.ndarray, target: Target) -> Any:
    """Draw the surface, brightest where schedules are best, with contours."""
    values = np.log10(surface) if target.sign > 0 else surface
    axes.grid(False)
    axes.set(xlabel="log10 of the learning rate at the start", ylabel="log10 of the power of its decay")
    ends = np.linspace(*RATES, len(surface)), np.linspace(*POWERS, len(surface))
    axes.contour(*ends, values.T, levels=10, colors="white", linewidths=0.4)
    return axes.pcolormesh(
        *ends, surface.T, cmap="viridis_r" if target.sign > 0 else "viridis", shading="nearest"
    )


EXPERIMENT = Experiment(
    name="mnist-schedule",
    summary="a learning-rate schedule of two numbers for an MLP on MNIST, tuned for loss or accuracy",
    source="Vicol, Metz, Sohl-Dickstein, ICML 2021, section 5 (MNIST), and its published code",
    run=run,
    draw=draw,
    protocol=__doc__,
    options=Options,
    variants=tuple(Options(target) for target in TARGETS),
    spread=True,
)
