"""Toy regression: PES finds the global optimum of a learning-rate schedule, truncated methods a local one.

Protocol: the problem of ``inner_tasks.problems.toy_regression``, T = 100, from theta = (-4, -4); 20,000
updates of Adam (learning rate 1e-2, beta_1 0.99) with K = 10. Evolution strategies and UORO have 100
particles, all in step; sigma is 0.3, or 1 for truncated ES. The meta-loss of the unperturbed theta is
measured every 10 updates. A correct PES settles at the minimum of the surface smoothed with sigma = 0.3,
where the raw loss is 560 to 575, and not at the raw minimum of 552. The small scale has 1,500 updates and
only the methods that perturb theta.

Source: Vicol, Metz, Sohl-Dickstein, ICML 2021, and its published code.
"""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
from matplotlib.axes import Axes
from matplotlib.colors import LogNorm
from matplotlib.image import AxesImage
from rich.console import Console
from scipy.ndimage import gaussian_filter

from inner_tasks.problems.toy_regression import ToyRegression
from meta_train.estimators import Estimator, mean_of, nres, pes, rtrl, tbptt, truncated_es, uoro
from meta_train.experiments.base import Experiment, Outcome, Result, Settings, Verdict
from meta_train.experiments.descent import descend
from meta_train.run.progress import ProgressLine

START = (-4.0, -4.0)
TRUNCATION = 10
PARTICLES = 100
SIGMA = 0.3
UPDATES = {"small": 1500, "paper": 20_000}
EVERY = 10

# The surface is drawn over [-5, 5]^2, and computed over a larger square for the smoothing.
DRAWN, MARGIN = 5.0, 1.5
POINTS = {"small": 131, "paper": 1301}
SIGMAS = (0.1, 0.3, 1.0)
# An episode so long that the raw surface is chaotic.
LONG_HORIZON = 1000
LONG_POINTS = {"small": 66, "paper": 391}

# The theta_1 of the slice that is drawn next to the surfaces.
SLICE = -2.0

# Exact values of this surface: at the start, at the centre, and the minimum after smoothing with 0.3.
ANCHORS = {START: 2487.77, (0.0, 0.0): 2423.47}
SMOOTHED_MINIMUM = 609.8


class Method(NamedTuple):
    """How one method is run."""

    estimator: Estimator
    label: str


def methods(scale: str) -> dict[str, Method]:
    """The methods by name."""
    problem, pairs = ToyRegression(), PARTICLES // 2
    by_pairs = {
        "pes": Method(pes(problem, sigma=SIGMA, truncation=TRUNCATION), "PES"),
        "truncated-es": Method(truncated_es(problem, sigma=1.0, truncation=TRUNCATION), "truncated ES"),
        "nres": Method(nres(problem, sigma=SIGMA, truncation=TRUNCATION), "NRES"),
    }
    by_derivative = {
        "tbptt": Method(tbptt(problem, truncation=TRUNCATION), "TBPTT"),
        "rtrl": Method(rtrl(problem, truncation=TRUNCATION), "RTRL"),
        "uoro": Method(mean_of(uoro(problem, truncation=TRUNCATION), PARTICLES), "UORO"),
    }
    many = {name: Method(mean_of(m.estimator, pairs), m.label) for name, m in by_pairs.items()}
    return many if scale == "small" else many | by_derivative


def run(settings: Settings, console: Console) -> Result:
    """Run every method from theta = (-4, -4), and compute the surface that they move on."""
    updates = UPDATES[settings.scale]
    outcomes = {
        name: descend(
            method.label,
            method.estimator,
            optax.adam(1e-2, b1=0.99),
            jnp.array(START),
            ToyRegression().meta_loss,
            truncation=TRUNCATION,
            seeds=settings.seeds,
            updates=updates,
            every=EVERY,
            folder=settings.folder / "paths" / name,
            console=console,
        )
        for name, method in methods(settings.scale).items()
    }
    short = surface(ToyRegression(), POINTS[settings.scale], "surface", console)
    long = surface(
        ToyRegression(LONG_HORIZON), LONG_POINTS[settings.scale], "surface of a long unroll", console
    )
    checks = {
        f"meta-loss at {theta}": (float(ToyRegression().meta_loss(jnp.array(theta))), value)
        for theta, value in ANCHORS.items()
    }
    if settings.scale == "paper":
        checks["least smoothed meta-loss, sigma 0.3"] = (smoothed(short, 0.3).min(), SMOOTHED_MINIMUM)
    return Result(
        outcomes, verdict(outcomes, settings.scale), checks, pictured={"short": short, "long": long}
    )


def late_loss(outcome: Outcome) -> np.ndarray:
    """Mean of the last fifth of the evaluations, ``[seeds]``."""
    loss = outcome.curve["loss"]
    return loss[:, -(loss.shape[1] // 5) :].mean(axis=1)


def verdict(outcomes: dict[str, Outcome], scale: str) -> Verdict:
    """PES settles in the basin of the global optimum; truncated ES does not."""
    low, high = (540, 650) if scale == "small" else (555, 580)
    late = {name: late_loss(outcome) for name, outcome in outcomes.items()}
    least, most, truncated = late["pes"].min(), late["pes"].max(), late["truncated-es"].min()
    others = {method.label: late[name].mean() for name, method in methods(scale).items()}
    text = (
        f"mean of the last fifth of the evaluations: PES {least:.1f} to {most:.1f} over seeds (expected: "
        f"{low} to {high}), truncated ES {truncated:.0f} at least (expected: above 1,000); means over seeds: "
        + ", ".join(f"{label} {mean:.0f}" for label, mean in others.items())
    )
    return Verdict(bool(low < least and most < high and truncated > 1000), text)


def axis(points: int) -> np.ndarray:
    """The grid values of one entry of theta, ``[points]``."""
    return np.linspace(-DRAWN - MARGIN, DRAWN + MARGIN, points)


def surface(problem: ToyRegression, points: int, label: str, console: Console) -> np.ndarray:
    """Meta-loss on a grid, ``[points of theta_0, points of theta_1]``."""
    values = axis(points)
    row = jax.jit(
        lambda first: jax.vmap(lambda second: problem.meta_loss(jnp.array([first, second])))(values)
    )
    rows = []
    with ProgressLine(console, points, 0, label) as progress:
        for number, first in enumerate(values, 1):
            began = time.perf_counter()
            rows.append(np.asarray(row(first)))
            steps = points * problem.horizon
            progress.advance(number, float(rows[-1].mean()), steps, time.perf_counter() - began)
    return np.stack(rows)


def smoothed(values: np.ndarray, sigma: float) -> np.ndarray:
    """A surface as seen by evolution strategies: the mean over ``theta + N(0, sigma^2 I)``."""
    spacing = 2 * (DRAWN + MARGIN) / (len(values) - 1)
    return gaussian_filter(values.astype(np.float64), sigma / spacing, mode="nearest", truncate=5)


def draw(result: Result, folder: Path) -> Sequence[Path]:
    """Draw trajectories on the surface with meta-loss over updates, and surfaces, raw and smoothed."""
    from meta_train.experiments.drawing import draw_losses, styles
    from meta_train.report.figures import picture

    labels = {name: method.label for name, method in methods("paper").items()}
    short = result.pictured["short"]
    paths = [folder / "toy_regression.png", folder / "toy_regression_surfaces.png"]
    with picture(paths[0], ncols=2, figsize=(11, 4.6)) as (figure, (left, right)):
        image = _draw_surface(left, short, short.min())
        figure.colorbar(image, ax=left, label="meta-loss")
        for name, style in styles(result.methods).items():
            for path in result.methods[name].curve["theta"]:
                left.plot(*path.T, lw=0.8, **style)
                left.plot(*path[-1], "o", ms=5, color=style["color"], mec="white")
        left.plot(*START, "*", color="white", ms=10, mec="black")
        left.set_title("every seed, from the star to its dot")
        draw_losses(right, result.methods, labels)
        right.set(
            xlabel="outer update",
            ylabel="meta-loss (sum over an episode)",
            ylim=(500, 2600),
            title="unperturbed theta: median and range over seeds",
        )
        right.legend(loc="upper right", bbox_to_anchor=(1, 0.92), ncols=3)
    columns = len(SIGMAS) + 1
    with picture(paths[1], nrows=2, ncols=columns, figsize=(3.1 * columns, 5.8)) as (figure, axes):
        for row, (name, horizon) in zip(axes, {"short": 100, "long": LONG_HORIZON}.items(), strict=True):
            raw = result.pictured[name]
            seen = {"raw": raw} | {f"sigma = {sigma}": smoothed(raw, sigma) for sigma in SIGMAS}
            for ax, (title, values) in zip(row, list(seen.items())[: columns - 1], strict=False):
                image = _draw_surface(ax, values, raw.min())
                ax.axhline(SLICE, color="white", lw=0.8, ls=":")
                ax.set_title(f"T = {horizon}: {title}", fontsize=10)
            figure.colorbar(image, ax=row[columns - 2], label="meta-loss")
            _draw_slice(row[-1], seen, ToyRegression(horizon))
            row[-1].set_title(f"T = {horizon}: along theta_1 = {SLICE:g}", fontsize=10)
    return paths


def _draw_slice(axes: Axes, seen: Mapping[str, np.ndarray], problem: ToyRegression) -> None:
    """Draw the meta-loss along theta_0: raw on a finer grid, and smoothed."""
    fine = np.linspace(0, 4, 2001)
    raw = jax.jit(jax.vmap(lambda first: problem.meta_loss(jnp.array([first, SLICE]))))(fine)
    axes.plot(fine, raw, color="grey", lw=0.4, label="raw")
    for number, (title, values) in enumerate(seen.items()):
        if title != "raw":
            ends = axis(len(values))
            axes.plot(ends, values[:, np.abs(ends - SLICE).argmin()], lw=1.4, color=f"C{number}", label=title)
    axes.set(xlim=(0, 4), ylim=(0.8 * raw.min(), 20 * raw.min()), yscale="log", xlabel="theta_0")
    axes.legend(fontsize=8)


def _draw_surface(axes: Axes, values: np.ndarray, least: float) -> AxesImage:
    """Draw a surface on a logarithmic scale from `least`, with contours of a slightly smoothed version."""
    end, ends = DRAWN + MARGIN, axis(len(values))
    levels = np.geomspace(least, 20 * least, 13)
    axes.grid(False)
    axes.contour(ends, ends, smoothed(values, 0.1).T, levels=levels, colors="white", linewidths=0.3)
    axes.set(
        xlim=(-DRAWN, DRAWN),
        ylim=(-DRAWN, DRAWN),
        xlabel="theta_0: log first rate",
        ylabel="theta_1: log last rate",
    )
    return axes.imshow(
        values.T,
        origin="lower",
        extent=(-end, end, -end, end),
        norm=LogNorm(least, 20 * least),
        cmap="viridis",
    )


EXPERIMENT = Experiment(
    name="toy-regression",
    summary="a learning-rate schedule of two numbers, whose meta-loss has local optima",
    source="Vicol, Metz, Sohl-Dickstein, ICML 2021, section 5 (toy 2-D regression)",
    run=run,
    draw=draw,
    protocol=__doc__,
)
