"""The pictures of a report."""

from __future__ import annotations

import io
import itertools
import textwrap
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib import rc_context
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import LogLocator, NullFormatter

from learned_opt._src.files import whole_file
from meta_train.report.baselines import BASELINES, label
from meta_train.report.comparison import REFERENCE, Comparison

LEARNED = "#c1272d"
# For optimizers without a colour of their own.
MORE_COLOURS = (LEARNED, "#4daf4a", "#f781bf", "#555555", "#a65628", "#999933")
STYLE: dict[Any, Any] = {
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.grid": True,
    "grid.alpha": 0.3,
    "legend.frameon": False,
    "savefig.dpi": 150,
    "savefig.bbox": "tight",
}
COLUMNS = 2
RATIO_TICKS = (0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9, 1, 1.1, 1.2, 1.3, 1.5, 2, 3)
WIDE_RATIO_TICKS = (0.1, 0.2, 0.5, 0.7, 1, 1.5, 2, 3, 5, 10, 30, 100)


class Picture(Figure):
    """A figure that shows itself in a notebook, and leaves pyplot and its display alone."""

    def _repr_png_(self) -> bytes:
        png = io.BytesIO()
        with rc_context(STYLE):
            self.savefig(png, format="png")
        return png.getvalue()


@contextmanager
def picture(
    path: Path | None,
    figsize: tuple[float, float] | None = None,
    layout: Any = "constrained",
    **grid: Any,
) -> Iterator[tuple[Picture, Any]]:
    """A figure with axes (``Figure.subplots(**grid)``) that is saved at the end, if there is a path."""
    with rc_context(STYLE):
        figure = Picture(figsize=figsize, layout=layout)
        yield figure, figure.subplots(**grid)
        if path:
            with whole_file(path) as file:
                figure.savefig(file, format="png")


def draw_training_curves(comparisons: Sequence[Comparison], path: Path | None) -> Picture:
    """Draw training loss over inner steps, one panel per task: mean and standard error over seeds.

    The legend lists the optimizers in the order of their ranking, with their scores. The picture is returned,
    and saved if there is a path.
    """
    scores = textwrap.fill(f"{comparisons[0].criterion.label}, best first", 34)
    about = f"{comparisons[0].seeds} unseen seeds, mean ± standard error"
    with _panels(comparisons, path, about) as (figure, panels):
        for comparison, axes in panels:
            # A minibatch loss is noisy; a short running mean shows its trend.
            width = max(1, comparison.steps // 40)
            colours = _colours(comparison)
            for name in comparison.ranking:
                runs, rate, _ = comparison.results[name]
                text = label(name) + (f" ({rate:.1e})" if rate else "") + f": {comparison.score(name):.3g}"
                losses = np.stack([_running_mean(x, width) for x in runs.losses])
                steps = np.arange(losses.shape[1]) + (width + 1) / 2
                mean, error = losses.mean(0), losses.std(0) / max(1, len(losses) - 1) ** 0.5
                line_width = 1.2 if rate else 2
                axes.plot(steps, mean, _line(name), label=text, color=colours[name], lw=line_width)
                low = np.maximum(mean - error, losses.min(0))  # keeps the band above zero on the log axis
                axes.fill_between(steps, low, mean + error, color=colours[name], alpha=0.15, lw=0)
            axes.set(
                xlabel="inner step",
                ylabel=f"training loss (running mean over {width} steps)",
            )
            _make_log(axes)
            axes.legend(title=scores, fontsize="small", title_fontsize="small", alignment="left")
    return figure


def draw_learning_rates(comparisons: Sequence[Comparison], path: Path) -> None:
    """Draw the ranking criterion over the learning rate, one panel per task: how each baseline was tuned."""
    with _panels(comparisons, path, "how the baselines were tuned") as (_, panels):
        for comparison, axes in panels:
            colours = _colours(comparison)
            finite: list[float] = []
            for name, (_, _, tried) in comparison.results.items():
                line: dict[str, Any] = {"label": label(name), "color": colours[name]}
                if tried:
                    axes.plot(*np.array(list(tried.items())).T, "o" + _line(name), ms=4, **line)
                    finite += [score for score in tried.values() if np.isfinite(score)]
                else:
                    axes.axhline(comparison.score(name), lw=2, **line)
            axes.set(
                xlabel="learning rate",
                ylabel=textwrap.fill(f"{comparison.criterion.label}, {comparison.steps} steps", 40),
                xscale="log",
            )
            if min(finite, default=0) > 0:  # the negative of an accuracy has no logarithm
                _make_log(axes)
            # Diverging rates would squeeze the rest into a line.
            if finite:
                axes.set_ylim(top=np.quantile(finite, 0.8))
            axes.legend(fontsize="small", frameon=True, edgecolor="none", framealpha=0.9)


def draw_ratios(comparisons: Sequence[Comparison], path: Path) -> None:
    """Draw scores relative to tuned Adam's: a row for each task, a marker for each optimizer."""
    with picture(path, figsize=(8, 1.6 + 0.4 * len(comparisons)), layout=None) as (_, axes):
        colours = _colours(comparisons[0])
        height = np.arange(len(comparisons))
        for name in comparisons[0].results:
            if name != REFERENCE:
                ratios = [comparison.ratio_to_adam(name) for comparison in comparisons]
                marker = BASELINES[name].schedule.marker if name in BASELINES else "o"
                axes.plot(ratios, height, marker, color=colours[name], label=label(name))
        axes.axvline(1, color=colours[REFERENCE], lw=1, label="Adam, best learning rate")
        axes.set_yticks(height, [f"{c.task}, {c.steps} steps" for c in comparisons])
        axes.invert_yaxis()
        axes.set(xlabel=f"{comparisons[0].criterion.label}, in units of tuned Adam's", xscale="log")
        low, high = axes.get_xlim()
        ticks = RATIO_TICKS if high < 4 * low else WIDE_RATIO_TICKS
        axes.set_xticks([x for x in ticks if low <= x <= high])
        axes.set_xticks([], minor=True)
        axes.xaxis.set_major_formatter("{x:g}")
        axes.legend(loc="upper left", bbox_to_anchor=(1, 1))


@contextmanager
def _panels(
    comparisons: Sequence[Comparison], path: Path | None, about: str
) -> Iterator[tuple[Picture, Iterator[tuple[Comparison, Axes]]]]:
    """A figure with a panel for each comparison, titled with its task, saved at the end."""
    columns = min(COLUMNS, len(comparisons))
    lines = -(-len(comparisons) // columns)
    with picture(path, (6.4 * columns, 4 * lines), nrows=lines, ncols=columns, squeeze=False) as (
        figure,
        grid,
    ):
        for unused in grid.flat[len(comparisons) :]:
            unused.remove()
        for comparison, axes in zip(comparisons, grid.flat, strict=False):
            axes.set_title(comparison.task if len(comparisons) > 1 else f"{comparison.task}: {about}")
        if len(comparisons) > 1:
            figure.suptitle(about)
        yield figure, zip(comparisons, grid.flat, strict=False)


def _colours(comparison: Comparison) -> dict[str, str]:
    more = itertools.cycle(MORE_COLOURS)
    own = {name: BASELINES[name].rule.colour for name in comparison.results if name in BASELINES}
    return {name: own.get(name) or next(more) for name in comparison.results}


def _line(name: str) -> str:
    return BASELINES[name].schedule.line if name in BASELINES else "-"


def draw_meta_training(metrics: Sequence[Mapping[str, Any]], path: Path | None) -> Picture:
    """Draw the meta-loss and the norm of the meta-gradient over the updates.

    The picture is returned, and saved if there is a path.
    """
    updates = np.array([m["update"] for m in metrics])
    per_update = sum(m["steps"] for m in metrics) / max(1, len(metrics))
    with picture(path, (10, 3.8), ncols=2) as (figure, (left, right)):
        _draw_smoothed(left, updates, _floats(metrics, "loss"))
        left.set(title="meta-loss: mean loss per inner step", xlabel="outer update")
        thousands = left.secondary_xaxis(
            "top", (lambda x: x * per_update / 1000, lambda x: 1000 * x / max(per_update, 1))
        )
        thousands.set_xlabel("thousand inner steps of all particles", fontsize="small")
        _draw_smoothed(right, updates, _floats(metrics, "gradient_norm"))
        right.set(title="norm of the meta-gradient", xlabel="outer update")
    return figure


def _draw_smoothed(axes: Axes, x: np.ndarray, y: np.ndarray) -> None:
    if not len(y):
        return  # all lines of a damaged metrics file are lost
    width = max(1, len(y) // 50)
    smooth = _running_mean(y, width)
    if width == 1:
        axes.plot(x, y, color=LEARNED, lw=1.8)
    else:
        axes.plot(x, y, color=LEARNED, alpha=0.2, lw=0.8)
        axes.plot(x[width - 1 :], smooth, color=LEARNED, lw=1.8, label=f"mean of {width} updates")
        axes.legend()
    finite = smooth[np.isfinite(smooth)]
    # The negative of an accuracy has no logarithm, and a log axis of a short range has hardly a tick.
    if finite.size and 0 < 3 * finite.min() < finite.max():
        _make_log(axes)


def _make_log(axes: Axes) -> None:
    """Make the y axis logarithmic, with ticks such as 0.05, 0.1 and 0.2."""
    axes.set_yscale("log")
    axes.yaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
    axes.yaxis.set_major_formatter("{x:g}")
    axes.yaxis.set_minor_formatter(NullFormatter())


def _running_mean(values: np.ndarray, width: int) -> np.ndarray:
    return np.convolve(values, np.ones(width) / width, mode="valid")


def _floats(metrics: Sequence[Mapping[str, Any]], name: str) -> np.ndarray:
    return np.array([np.nan if m[name] is None else m[name] for m in metrics])
