"""The style of the experiments' pictures."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
from matplotlib.axes import Axes

from meta_train.experiments.base import Outcome

# A method has the same colour in every picture; its variants differ in line style.
COLOURS = {
    "pes": "#c1272d",
    "nres": "#e69f00",
    "truncated-es": "#0000a7",
    "full-es": "#008176",
    "tbptt": "#57a0d3",
    "bptt": "#8c564b",
    "rtrl": "#333333",
    "uoro": "#9b59b6",
    "gpes": "#17becf",
    "random-search": "#7f7f7f",
}
LINES = ["-", "--", ":", "-."]


def colour(method: str) -> str:
    """The colour of a method: that of the longest known name that its name starts with."""
    return COLOURS[max((name for name in COLOURS if method.startswith(name)), key=len)]


def styles(methods: Mapping[str, Any]) -> dict[str, dict[str, Any]]:
    """Colour and line style of each method."""
    seen: dict[str, int] = {}
    result = {}
    for method in methods:
        number = seen[colour(method)] = seen.get(colour(method), -1) + 1
        result[method] = {"color": colour(method), "ls": LINES[number % len(LINES)]}
    return result


def draw_losses(
    axes: Axes, methods: Mapping[str, Outcome], labels: Mapping[str, str], x: str = "update", y: str = "loss"
) -> None:
    """Draw meta-loss over updates: the median over seeds, and a band from the minimum to the maximum.

    `x` and `y` select other entries of the curves.
    """
    for method, style in styles(methods).items():
        curve = methods[method].curve
        loss = np.where(np.isfinite(curve[y]), curve[y], np.nan)
        with np.errstate(all="ignore"):
            middle = np.median(loss, axis=0)
            low, high = loss.min(axis=0), loss.max(axis=0)
        axes.plot(curve[x], middle, lw=1.2, label=labels.get(method, method), **style)
        axes.fill_between(curve[x], low, high, color=style["color"], alpha=0.15, lw=0)
