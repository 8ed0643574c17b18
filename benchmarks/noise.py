"""Noise and cost of every estimator of the meta-gradient, at a fixed theta.

    python benchmarks/noise.py
    python benchmarks/noise.py --estimators pes nres --sigmas 0.03 0.1 --truncations 20 50 --out noise.jsonl
    python benchmarks/noise.py --theta runs/digits-mlp-1

For one unit (an antithetic pair, or an unperturbed particle) the table shows

* V, the trace of the covariance of its estimate, ``E|g|^2 - |E g|^2``; a population of n units has V / n;
* the CPU time of an update of one unit, and V times that: the cost of a given accuracy. It is comparable
  between estimators with the same truncation length K, because estimates are divided by K;
* ``|E g|^2``, estimated without bias from products of different units, and the number of unit-updates (units
  times updates) after which noise and signal are equal, ``V / |E g|^2``;
* the share of the largest 5% of the estimates in the second moment: 5% if all were equal;
* ``V / |E g|^2`` of other estimates: those of this one, shortened to the median of their norms where they are
  longer ("clipped"), or all divided by their norms ("equal"). Both have another mean, so a smaller ratio is
  better only if that mean is a direction of descent, too.

Units are independent, but the estimates of one unit in consecutive updates are not. So errors are standard
errors over units, of each unit's mean over the updates. The first episode of each unit is not counted.
"""

from __future__ import annotations

import dataclasses
import itertools
import json
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.flatten_util
import jax.numpy as jnp
import numpy as np
import tyro
from rich.box import SIMPLE_HEAD
from rich.console import Console
from rich.progress import Progress
from rich.table import Table

import learned_opt
from inner_tasks import find_task, training_of
from meta_train.devices.choice import start_devices
from meta_train.estimators import ESTIMATORS, Estimator
from meta_train.experiments.drawing import colour
from meta_train.report.figures import picture

TAIL = 0.05


@dataclass(frozen=True)
class Arguments:
    """Noise and cost of estimators at a fixed theta."""

    task: str = "digits-mlp"
    """Inner task."""
    objective: str = "mean-and-validation-end"
    """Loss of an inner step."""
    horizon: int | None = None
    """T; by default that of the task."""
    optimizers: tuple[str, ...] = ("nadam-mlp",)
    """Architectures."""
    theta: Path | None = None
    """Optimizer file or run folder with the theta; by default a fresh theta."""
    estimators: tuple[str, ...] = ("pes", "nres", "truncated-es", "full-es", "tbptt")
    """Estimators."""
    sigmas: tuple[float, ...] = (0.01, 0.03, 0.1, 0.3)
    """Standard deviations of the perturbations."""
    truncations: tuple[int, ...] = (20,)
    """K."""
    units: int = 32
    """Number of independent units."""
    episodes: int = 2
    """Episodes of each unit that are counted."""
    out: Path | None = None
    """File for JSON lines, one for each row; a picture is drawn next to it."""


class Moments(NamedTuple):
    """Measurements of one unit's estimates: values and their standard errors."""

    variance: tuple[float, float]  # V
    signal: tuple[float, float]  # |E g|^2

    @property
    def relative(self) -> float | None:
        """``V / |E g|^2``, if the signal is seen at all."""
        return self.variance[0] / self.signal[0] if self.signal[0] > 2 * self.signal[1] else None


class Noise(NamedTuple):
    """Measurements of one setting."""

    moments: Moments
    clipped: Moments
    equal: Moments
    tail: float  # share of the second moment in the largest 5%
    seconds: float  # CPU time of an update of one unit


def main() -> None:
    """Print the table, and write and draw it if requested."""
    arguments = tyro.cli(Arguments)
    start_devices(1)
    rows = list(_rows(arguments))
    console = Console(width=140)
    table = Table(title=f"{arguments.task}, theta {arguments.theta or 'fresh'}", box=SIMPLE_HEAD)
    names = "optimizer", "estimator", "sigma", "K", "V", "ms", "V x s", "|E g|^2", "top 5%"
    names = *names, "V / |E g|^2", "clipped", "equal"
    for name in names:
        table.add_column(name, justify="left" if name in names[:2] else "right")
    with Progress(console=Console(stderr=True), transient=True) as progress:
        bar = progress.add_task("measuring", total=len(rows))
        for row in rows:
            noise = measure(arguments, **row)
            table.add_row(*_cells(row, noise))
            if arguments.out:
                with arguments.out.open("a") as file:
                    line = {"task": arguments.task, "theta": str(arguments.theta or "fresh")}
                    file.write(json.dumps(line | row | _values(noise)) + "\n")
            progress.advance(bar)
    console.print(table)
    if arguments.out:
        draw(arguments.out)


def _rows(arguments: Arguments) -> Any:
    """All distinct combinations; settings that an estimator does not take are None."""
    for optimizer, name in itertools.product(arguments.optimizers, arguments.estimators):
        taken = ESTIMATORS[name].settings
        sigmas = arguments.sigmas if "sigma" in taken else (None,)
        truncations = arguments.truncations if "truncation" in taken else (None,)
        for sigma, truncation in itertools.product(sigmas, truncations):
            yield {"optimizer": optimizer, "estimator": name, "sigma": sigma, "truncation": truncation}


def measure(
    arguments: Arguments, optimizer: str, estimator: str, sigma: float | None, truncation: int | None
) -> Noise:
    """The noise of one estimator with one set of settings."""
    registered = find_task(arguments.task)
    horizon = arguments.horizon or registered.settings.horizon
    task = registered.build(registered.settings._replace(horizon=horizon))
    training = training_of(
        task, learned_opt.get_architecture(optimizer), arguments.objective, task.load(None)
    )
    theta = training.init_theta(jax.random.key(0))
    if arguments.theta:
        theta = learned_opt.read(arguments.theta).theta
    settings = {
        "sigma": sigma,
        "truncation": truncation,
        "analytic": False,
        "perturbation_period": truncation,
    }
    settings = {k: v for k, v in settings.items() if k in ESTIMATORS[estimator].settings}
    chunk = {"chunk": 1} if ESTIMATORS[estimator].particles == 2 else {}

    def make(data: Any) -> Estimator:
        return ESTIMATORS[estimator].make(dataclasses.replace(training, data=data), **settings, **chunk)

    windows = -(-task.horizon // (truncation or task.horizon))

    @jax.jit
    def init(data: Any, keys: jax.Array) -> Any:
        phases = jnp.arange(len(keys)) / len(keys)
        return jax.vmap(make(data).init, (0, None, 0))(keys, theta, phases)

    @jax.jit
    def update(data: Any, states: Any, keys: jax.Array) -> tuple[jax.Array, Any]:
        def one(inputs: Any) -> tuple[jax.Array, Any]:
            state, key = inputs
            gradient, state, _ = make(data).estimate(theta, state, key)
            return jax.flatten_util.ravel_pytree(gradient)[0], state

        return jax.lax.map(one, (states, keys))

    key = jax.random.key(1)
    states = init(training.data, jax.random.split(key, arguments.units))
    estimates, began = [], 0.0
    for number in range(windows * (1 + arguments.episodes)):
        if number == windows:
            began = time.process_time()
        keys = jax.random.split(jax.random.fold_in(key, number), arguments.units)
        gradient, states = update(training.data, states, keys)
        if number >= windows:
            estimates.append(np.asarray(gradient, np.float64))
    seconds = (time.process_time() - began) / (len(estimates) * arguments.units)
    return summary(np.stack(estimates), seconds)


def summary(estimates: np.ndarray, seconds: float) -> Noise:
    """Moments of estimates ``[updates, units, P]`` whose units are independent."""
    squares = np.sum(estimates**2, axis=2)
    norms = np.sqrt(squares)[..., None]
    shortened = np.minimum(1, np.median(norms) / np.maximum(norms, 1e-30))
    largest = np.sort(squares.ravel())[-max(1, round(TAIL * squares.size)) :]
    return Noise(
        moments(estimates),
        clipped=moments(estimates * shortened),
        equal=moments(estimates / np.maximum(norms, 1e-30)),
        tail=float(largest.sum() / squares.sum()),
        seconds=seconds,
    )


def moments(estimates: np.ndarray) -> Moments:
    """Variance and signal of estimates ``[updates, units, P]``, with standard errors by the jackknife.

    It overstates the error of a signal of zero by a factor of the root of 2.
    """
    units = estimates.shape[1]
    whole, own = estimates.sum(axis=1, keepdims=True), np.sum(estimates**2, axis=2)

    def without(rest: np.ndarray, squares: np.ndarray, count: int) -> np.ndarray:
        """Variance and signal of some units, from their sum and their sum of squares: ``[2, ...]``."""
        # The products of one unit with another have the expectation |E g|^2.
        signal = (np.sum(rest**2, axis=2) - squares) / (count * (count - 1))
        return np.stack([squares / count - signal, signal]).mean(axis=1)

    found = without(whole, own.sum(axis=1, keepdims=True), units)[:, 0]
    each = without(whole - estimates, own.sum(axis=1, keepdims=True) - own, units - 1)
    errors = np.sqrt((units - 1) * each.var(axis=1))
    variance, signal = zip(found.tolist(), errors.tolist(), strict=True)
    return Moments(variance=variance, signal=signal)


def _values(noise: Noise) -> dict[str, Any]:
    """The measurements as JSON values."""
    each = {k: v._asdict() if isinstance(v, Moments) else v for k, v in noise._asdict().items()}
    return each.pop("moments") | each


def _cells(row: dict[str, Any], noise: Noise) -> list[str]:
    def text(value: Any) -> str:
        return "" if value is None else f"{value:g}" if isinstance(value, float | int) else value

    variance, signal = noise.moments
    ratios = [each.relative for each in (noise.moments, noise.clipped, noise.equal)]
    return [
        *map(text, row.values()),
        f"{variance[0]:.3g} ± {variance[1]:.1g}",
        f"{1e3 * noise.seconds:.3g}",
        f"{variance[0] * noise.seconds:.2g}",
        f"{signal[0]:.2g} ± {signal[1]:.1g}",
        f"{noise.tail:.0%}",
        *("" if ratio is None else f"{ratio:.2g}" for ratio in ratios),
    ]


def draw(path: Path) -> None:
    """Draw V times seconds over sigma, a line for each estimator, architecture and truncation length."""
    rows = [json.loads(line) for line in path.read_text().splitlines()]
    lines: dict[tuple[str, ...], list[tuple[float, float, float]]] = {}
    for row in rows:
        key = row["estimator"], row["optimizer"], row["truncation"], row["theta"]
        cost = tuple(row["seconds"] * np.array(row["variance"]))
        lines.setdefault(key, []).append((row["sigma"], *cost))
    many = [len({key[i] for key in lines}) > 1 for i in range(4)]
    with picture(path.with_suffix(".png"), figsize=(7, 4.5)) as (_, axes):
        for number, (key, points) in enumerate(lines.items()):
            names = [key[0], key[1], f"K = {key[2] or 'T'}", Path(key[3]).name]
            label = ", ".join(
                name for name, shown in zip(names, many, strict=True) if shown or name == key[0]
            )
            sigma, cost, error = zip(*points, strict=True)
            style = {"color": colour(key[0]), "ls": ["-", "--", ":", "-."][number % 4], "label": label}
            if sigma[0] is None:
                axes.axhline(cost[0], **style)
            else:
                axes.errorbar(sigma, cost, error, marker="o", ms=4, **style)
        axes.set(xscale="log", yscale="log", xlabel="sigma", ylabel="variance x CPU seconds of one unit")
        axes.legend(fontsize="small")


if __name__ == "__main__":
    main()
