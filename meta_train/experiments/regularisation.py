"""Regularisation: PES finds the best L2 coefficient from all starts; truncated ES settles elsewhere.

Protocol: theta is the logarithm of the L2 coefficient of a linear regression, trained by gradient descent
with a learning rate of 0.001 (``inner_tasks.problems.ridge``); 50,000 updates of Adam (learning rate 0.003)
from each of six starts, with K = 1, sigma = 0.01, N = 4 particles, and T = 10^6, so that no episode ends.
The held-out loss of the ridge solution for theta, for the worst start, is measured 100 times at equal
intervals; below theta = -8 it hardly changes, and is taken to be constant.

It differs from the published protocol in its data, scikit-learn's diabetes instead of UCI yacht (so the
optimum differs), and PES is also run with N = 16. With N = 4, some of the runs from theta = -5 drift to where
theta no longer matters: the gradient there is small compared with its noise, but Adam's steps have the same
size. The small scale has 10,000 updates from three starts.

The expected values come from the ridge solution ``w(theta) = (H + exp(theta) I)^-1 X^T y`` with
``H = X^T X``, in double precision. The held-out loss L has the slope

    dL/dtheta = -exp(theta) dL/dw . (H + exp(theta) I)^-1 w,

which is zero at the optimum. Truncated ES with K = 1 sees only a single step of weight decay, with the
weights before it held constant; its slope

    -learning_rate exp(theta) dL/dw . w

is zero elsewhere, where shrinking all weights by the same factor would not help.

Source: Vicol, Metz, Sohl-Dickstein, ICML 2021, and its published code.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
from matplotlib.axes import Axes
from rich.console import Console

from inner_tasks.problems.ridge import RidgeRegression, diabetes
from meta_train.estimators import Estimator, mean_of, nres, pes, rtrl, truncated_es
from meta_train.estimators.base import Info, State
from meta_train.experiments.base import Experiment, Outcome, Result, Settings, Verdict
from meta_train.experiments.descent import descend

STARTS = {"small": (-3.0, 1.0, 5.0), "paper": (-5.0, -3.0, -1.0, 1.0, 3.0, 5.0)}
UPDATES = {"small": 10_000, "paper": 50_000}
RECORDS = 100
SIGMA = 0.01
LEARNING_RATE = 3e-3
# How close to their expected values theta of PES and of truncated ES must settle; these differ by 1.3.
NEAR, TRUNCATED_NEAR = 0.4, 0.05

THETAS = np.linspace(-8, 6.5, 1451)


class Method(NamedTuple):
    """How one method is run."""

    estimator: Estimator
    label: str


class ClosedForm(NamedTuple):
    """Losses and slopes of the ridge solutions for the values of theta in ``THETAS``, float64."""

    loss: np.ndarray  # held-out loss, [thetas]
    slope: np.ndarray  # its derivative with respect to theta, [thetas]
    one_step_slope: np.ndarray  # the same through a single step of weight decay only, [thetas]

    @property
    def optimum(self) -> float:
        """The theta of the smallest loss."""
        return upward_zero(self.slope)

    @property
    def short_sighted(self) -> float:
        """The theta at which truncated ES with K = 1 is predicted to settle."""
        return upward_zero(self.one_step_slope)


def closed_form(problem: RidgeRegression) -> ClosedForm:
    """Held-out loss and slopes for each of ``THETAS``, in the basis where ``X^T X`` is diagonal."""
    x, y, v, u = (
        np.asarray(part, np.float64)
        for part in (problem.inputs, problem.targets, problem.held_out_inputs, problem.held_out_targets)
    )
    eigenvalues, basis = np.linalg.eigh(x.T @ x)
    decay = np.exp(THETAS)[:, None]
    weights = (basis.T @ (x.T @ y)) / (eigenvalues + decay)  # [thetas, features]
    residuals = weights @ (v @ basis).T - u
    gradient = 2 * residuals @ (v @ basis) / len(u)
    return ClosedForm(
        loss=np.mean(residuals**2, axis=1),
        slope=-np.sum(decay * gradient * weights / (eigenvalues + decay), axis=1),
        one_step_slope=-problem.learning_rate * np.sum(decay * gradient * weights, axis=1),
    )


def upward_zero(slope: np.ndarray) -> float:
    """The theta, interpolated in ``THETAS``, at which a slope turns positive and descent settles."""
    (before,) = np.flatnonzero((slope[:-1] < 0) & (slope[1:] >= 0))
    return float(np.interp(0, slope[before : before + 2], THETAS[before : before + 2]))


def side_by_side(estimator: Estimator) -> Estimator:
    """An estimator for a theta ``[starts]``, each entry of which is an independent run."""

    def init(key: jax.Array, theta: jax.Array, phase: jax.Array | float = 0.0) -> State:
        keys = jax.random.split(key, theta.size)
        return jax.vmap(estimator.init, in_axes=(0, 0, None))(keys, theta, phase)

    def estimate(theta: jax.Array, state: State, key: jax.Array) -> tuple[jax.Array, State, Info]:
        keys = jax.random.split(key, theta.size)
        gradient, state, info = jax.vmap(estimator.estimate)(theta, state, keys)
        return gradient, state, jax.tree.map(jnp.sum, info)

    return Estimator(init, estimate)


def methods(problem: RidgeRegression, scale: str) -> dict[str, Method]:
    """The methods by name; N counts particles."""
    es: dict[str, Any] = {"sigma": SIGMA, "truncation": 1, "chunk": 2}
    every = {
        "pes-16": Method(mean_of(pes(problem, **es), 8), "PES, N = 16"),
        "pes-4": Method(mean_of(pes(problem, **es), 2), "PES, N = 4"),
        "truncated-es": Method(mean_of(truncated_es(problem, **es), 2), "truncated ES, N = 4"),
        "nres": Method(mean_of(nres(problem, **es), 2), "NRES, N = 4"),
        "rtrl": Method(rtrl(problem, truncation=1), "RTRL (exact)"),
    }
    return every if scale == "paper" else {name: every[name] for name in ("pes-16", "truncated-es", "rtrl")}


def run(settings: Settings, console: Console) -> Result:
    """Run every method from every start."""
    problem, updates = diabetes(), UPDATES[settings.scale]
    exact = closed_form(problem)

    def worst_loss(theta: jax.Array) -> jax.Array:
        """Held-out loss of the ridge solution for the worst start, ``[starts] -> []``."""
        return jnp.max(jnp.interp(theta, THETAS, exact.loss))

    outcomes = {
        name: descend(
            method.label,
            side_by_side(method.estimator),
            optax.adam(LEARNING_RATE),
            jnp.array(STARTS[settings.scale]),
            worst_loss,
            truncation=1,
            seeds=settings.seeds,
            updates=updates,
            every=updates // RECORDS,
            folder=settings.folder / "paths" / name,
            console=console,
        )
        for name, method in methods(problem, settings.scale).items()
    }
    expected = {name: exact.short_sighted if name == "truncated-es" else exact.optimum for name in outcomes}
    checks = {
        f"theta of {name}, median over runs": (float(np.median(settled(outcome))), expected[name])
        for name, outcome in outcomes.items()
    }
    return Result(outcomes, verdict(outcomes, exact), checks, pictured={"closed form": exact})


def settled(outcome: Outcome) -> np.ndarray:
    """Median of theta over the last fifth of the records, ``[seeds, starts]``."""
    return np.median(outcome.curve["theta"][:, -(RECORDS // 5) :], axis=1)


def verdict(outcomes: dict[str, Outcome], exact: ClosedForm) -> Verdict:
    """PES settles at the optimum from every start; truncated ES where the one-step slope is zero."""
    theta = {name: settled(outcome) for name, outcome in outcomes.items()}
    distance = {name: np.abs(values - exact.optimum) for name, values in theta.items()}
    off = np.abs(theta["truncated-es"] - exact.short_sighted).max()
    holds = distance["pes-16"].max() < NEAR and distance["rtrl"].max() < NEAR and off < TRUNCATED_NEAR
    near = ", ".join(
        f"{name} {np.sum(values < NEAR)} of {values.size}"
        for name, values in distance.items()
        if name != "truncated-es"
    )
    text = (
        f"from each of {outcomes['pes-16'].theta.shape[-1]} starts PES (N = 16) settles within "
        f"{distance['pes-16'].max():.2g} of the optimum theta = {exact.optimum:.3f}, RTRL within "
        f"{distance['rtrl'].max():.2g} (expected: {NEAR}), "
        f"truncated ES within {off:.2g} of {exact.short_sighted:.3f}, where the slope of a single step is "
        f"zero (expected: {TRUNCATED_NEAR}); runs within {NEAR} of the optimum: {near}"
    )
    return Verdict(bool(holds), text)


def draw(result: Result, folder: Path) -> Sequence[Path]:
    """Draw theta over updates for each method, and the held-out loss as a function of theta."""
    from meta_train.experiments.drawing import colour
    from meta_train.report.figures import picture

    exact = result.pictured["closed form"]
    labels = {name: method.label for name, method in methods(diabetes(), "paper").items()}
    path = folder / "regularisation.png"
    columns = (len(result.methods) + 2) // 2
    with picture(path, nrows=2, ncols=columns, figsize=(4.2 * columns, 7)) as (figure, axes):
        *panels, last = axes.flat
        for panel, (name, outcome) in zip(panels, result.methods.items(), strict=True):
            _draw_thetas(panel, outcome, colour(name))
            panel.axhline(exact.optimum, color="black", lw=0.9, ls="--", label="optimum")
            panel.axhline(
                exact.short_sighted, color="black", lw=0.9, ls=":", label="zero slope of a single step"
            )
            panel.set(xlabel="outer update", ylabel="theta", ylim=(-6.5, 6.5), title=labels[name])
        panels[0].legend(fontsize=8, loc="lower right")
        last.plot(THETAS, exact.loss, color="grey", lw=1.5)
        for marker, (name, outcome) in zip("osD^v", result.methods.items(), strict=False):
            theta = np.clip(settled(outcome).ravel(), THETAS[0], THETAS[-1])
            loss = np.interp(theta, THETAS, exact.loss)
            last.plot(theta, loss, marker, ms=5, alpha=0.6, mew=0, color=colour(name), label=labels[name])
        last.set(xlabel="theta", ylabel="held-out loss", title="closed form, and where each run settled")
        last.legend(fontsize=8)
        figure.suptitle("log L2 coefficient from all starts: median and range over seeds")
    return [path]


def _draw_thetas(axes: Axes, outcome: Outcome, colour: str) -> None:
    """Draw theta over updates, a line for each start."""
    updates, theta = outcome.curve["update"], outcome.curve["theta"]
    for start in np.moveaxis(theta, -1, 0):
        axes.plot(updates, np.median(start, axis=0), lw=1.2, color=colour)
        axes.fill_between(updates, start.min(axis=0), start.max(axis=0), color=colour, alpha=0.15, lw=0)


EXPERIMENT = Experiment(
    name="regularisation",
    summary="an L2 coefficient, for which short truncations find a different optimum",
    source="the published code of Vicol, Metz, Sohl-Dickstein, ICML 2021 (log L2 coefficient)",
    run=run,
    draw=draw,
    protocol=__doc__,
)
