"""The pictures of a report."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import matplotlib

matplotlib.use("Agg")  # files only: no display is needed, whatever the user's own setting is
import matplotlib.pyplot as plt
import numpy as np
from matplotlib.axes import Axes

from meta_train.comparison import NAMES, Comparison

COLOURS = {
    "learned": "#c1272d",
    "adam": "#0000a7",
    "adamw": "#57a0d3",
    "sgdm": "#008176",
    "rmsprop": "#b87333",
}
# AdamW with optax's own weight decay lies almost on top of Adam.
LINES = {"adamw": "--"}
STYLE = {
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.grid": True,
    "grid.alpha": 0.3,
    "legend.frameon": False,
    "savefig.dpi": 150,
    "savefig.bbox": "tight",
}


def draw_training_curves(comparison: Comparison, path: Path) -> None:
    """Training loss over inner steps: mean and spread over seeds."""
    runs = {"learned": ("learned", comparison.learned)}
    for name, tuned in comparison.baselines.items():
        runs[name] = (f"{NAMES[name]} ({tuned.learning_rate:.1e})", tuned.runs)
    with plt.rc_context(STYLE):
        figure, axes = plt.subplots(figsize=(6.4, 4))
        # A minibatch loss jumps about; a short running mean shows where it goes.
        width = max(1, comparison.steps // 40)
        for name, (label, run) in runs.items():
            losses = np.stack([_running_mean(x, width) for x in run.losses])
            steps = np.arange(losses.shape[1]) + (width + 1) / 2
            mean, std = losses.mean(0), losses.std(0)
            line_width = 2 if name == "learned" else 1.2
            axes.plot(steps, mean, LINES.get(name, "-"), label=label, color=COLOURS[name], lw=line_width)
            low = np.maximum(mean - std, losses.min(0))  # keeps the band above zero on the log axis
            axes.fill_between(steps, low, mean + std, color=COLOURS[name], alpha=0.15, lw=0)
        axes.set(
            xlabel="inner step",
            ylabel=f"training loss (running mean over {width} steps)",
            yscale="log",
            title=f"{comparison.task}, {run.losses.shape[0]} unseen seeds: mean ± standard deviation",
        )
        axes.legend()
        figure.savefig(path)
        plt.close(figure)


def draw_learning_rates(comparison: Comparison, path: Path) -> None:
    """Mean training loss against learning rate: how each baseline was tuned."""
    with plt.rc_context(STYLE):
        figure, axes = plt.subplots(figsize=(6.4, 4))
        for name, tuned in comparison.baselines.items():
            rates, losses = np.array(list(tuned.tried.items())).T
            axes.plot(rates, losses, "o" + LINES.get(name, "-"), ms=4, label=NAMES[name], color=COLOURS[name])
        axes.axhline(comparison.learned.mean_loss.mean(), color=COLOURS["learned"], lw=2, label="learned")
        finite = [x for t in comparison.baselines.values() for x in t.tried.values() if np.isfinite(x)]
        axes.set(
            xlabel="learning rate",
            ylabel=f"mean training loss over {comparison.steps} steps",
            xscale="log",
            title=f"{comparison.task}: how the baselines were tuned",
        )
        # Rates that diverge would squeeze the rest to a line.
        if finite:
            axes.set_ylim(0, 1.1 * np.quantile(finite, 0.8))
        axes.legend()
        figure.savefig(path)
        plt.close(figure)


def draw_meta_training(metrics: Sequence[Mapping[str, Any]], path: Path) -> None:
    """Meta-loss over updates and over inner steps, and the norm of the meta-gradient."""
    updates = np.array([m["update"] for m in metrics])
    steps = np.cumsum([m["steps"] for m in metrics])
    loss = _floats(metrics, "loss")
    norm = _floats(metrics, "gradient_norm")
    with plt.rc_context(STYLE):
        figure, (left, middle, right) = plt.subplots(1, 3, figsize=(12, 3.6), layout="constrained")
        _draw_smoothed(left, updates, loss)
        left.set(xlabel="outer update", ylabel="meta-loss (mean loss per inner step)", yscale="log")
        _draw_smoothed(middle, steps, loss)
        middle.set(xlabel="inner steps of all particles", ylabel="meta-loss", yscale="log")
        _draw_smoothed(right, updates, norm)
        right.set(xlabel="outer update", ylabel="norm of the meta-gradient", yscale="log")
        figure.savefig(path)
        plt.close(figure)


def _draw_smoothed(axes: Axes, x: np.ndarray, y: np.ndarray) -> None:
    width = max(1, len(y) // 50)
    axes.plot(x, y, color=COLOURS["learned"], alpha=0.2, lw=0.8)
    smooth = _running_mean(y, width)
    axes.plot(x[width - 1 :], smooth, color=COLOURS["learned"], lw=1.8, label=f"mean of {width} updates")
    axes.legend()


def _running_mean(values: np.ndarray, width: int) -> np.ndarray:
    return np.convolve(values, np.ones(width) / width, mode="valid")


def _floats(metrics: Sequence[Mapping[str, Any]], name: str) -> np.ndarray:
    return np.array([np.nan if m[name] is None else m[name] for m in metrics])
