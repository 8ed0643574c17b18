"""Learned optimizer: PES ends lower than truncated ES, and varies less between initialisations.

Protocol: an MLP 3072-128-128-10 on CIFAR-10 with minibatches of 128 is trained by the network of Metz et al.
2019 (``--optimizer mlp``, or ``metz2019`` as it was released). Theta starts from a different random
initialisation for each seed. The talk specifies no more than that; our choices are T = 200, K = 20, N = 64
particles, sigma = 0.03, and 4,000 updates of the outer optimizer of ``meta-train`` (meta-gradients divided by
their norm; Adam with 5e-3 and a cosine to a tenth). The meta-loss is the training loss, summed over an
episode. The mean training loss of the unperturbed theta over an episode, on unseen seeds, is measured 20
times at equal intervals, and compared with that of Adam at its best learning rate.

The small scale has images of 8x8 pixels, hidden layers of 32 units, minibatches of 64, T = 100, K = 5,
and 800 updates with an outer learning rate of 1e-2.

Source: the talk on Vicol, Metz, Sohl-Dickstein, ICML 2021.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Literal, NamedTuple

import jax
import numpy as np
from rich.console import Console

import learned_opt
from inner_tasks import TaskSettings, Training
from inner_tasks.tasks.images import mlp_task
from meta_train.estimators import Estimator, nres, pes, truncated_es
from meta_train.experiments.base import (
    Claim,
    Difference,
    Experiment,
    Outcome,
    Result,
    Settings,
    Verdict,
    is_above,
    judged,
    variance,
)
from meta_train.experiments.learning import learn, mean_losses
from meta_train.outer.optimizers import OuterConfig, outer_optimizer
from meta_train.report import evaluation
from meta_train.report.baselines import baseline
from meta_train.run.progress import RunsLine

METHODS: Mapping[str, tuple[Callable[..., Estimator], str]] = {
    "pes": (pes, "PES"),
    "nres": (nres, "NRES"),
    "truncated-es": (truncated_es, "truncated ES"),
}
SIGMA = 0.03
RECORDS = 20


class Protocol(NamedTuple):
    """The settings that differ between scales."""

    pool: int  # images are smaller by this factor
    task: TaskSettings
    truncation: int
    particles: int
    updates: int
    learning_rate: float  # of the outer Adam
    runs: int  # unseen seeds


PROTOCOLS = {
    "small": Protocol(4, TaskSettings((32, 32), 64, 100), 5, 64, 800, 1e-2, 8),
    "paper": Protocol(1, TaskSettings((128, 128), 128, 200), 20, 64, 4000, 5e-3, 8),
}


@dataclass(frozen=True)
class Options:
    """Options of this experiment."""

    optimizer: Literal["mlp", "metz2019"] = "mlp"
    """Architecture of the learned optimizer."""


def run(settings: Settings, console: Console) -> Result:
    """Run every method from every initialisation, and tuned Adam."""
    protocol = PROTOCOLS[settings.scale]
    task = mlp_task("cifar10", protocol.task, pool=protocol.pool)
    optimizer = learned_opt.get_architecture(settings.options.optimizer)
    problem = Training(task.load(settings.data_dir), task, optimizer, task.horizon)
    with RunsLine(console, lambda: None, "Adam") as watch:
        adam = evaluation.run(
            problem,
            baseline("adam", task.horizon),
            protocol.runs,
            devices=settings.devices,
            chunk=settings.chunk,
            watch=watch,
        )
    like = problem.init_theta(jax.random.key(0))
    outcomes = {}
    for name, (make, label) in METHODS.items():
        path = learn(
            name,
            label,
            partial(make, sigma=SIGMA, truncation=protocol.truncation, chunk=settings.chunk),
            problem,
            outer_optimizer(OuterConfig(learning_rate=protocol.learning_rate), protocol.updates),
            problem.init_theta,
            pairs=protocol.particles // 2,
            updates=protocol.updates,
            every=protocol.updates // RECORDS,
            settings=settings,
            console=console,
        )
        losses = mean_losses(
            problem,
            path["theta"],
            like,
            protocol.runs,
            label=f"path of {label}",
            settings=settings,
            console=console,
        )
        curve = {"update": path["update"], "steps": path["steps"], "value": losses}
        outcomes[name] = Outcome(losses[:, -1], path["theta"][:, -1], curve)
    reference = float(adam.runs.mean_loss.mean())
    return Result(outcomes, verdict(outcomes, reference), pictured={"adam": reference})


def verdict(outcomes: Mapping[str, Outcome], adam: float) -> Verdict:
    """PES ends lower than truncated ES on average over initialisations, with less spread."""
    losses = {name: outcome.final_loss for name, outcome in outcomes.items()}
    said = ", ".join(
        f"{label} {losses[name].mean():.4f} ± {np.sqrt(variance(losses[name])):.4f}"
        for name, (_, label) in METHODS.items()
    )
    spread = log_ratio_of_variances(losses["truncated-es"], losses["pes"])
    return judged(
        f"mean training loss over an episode, mean and standard deviation over {losses['pes'].size} "
        f"initialisations: {said}; Adam at its best learning rate {adam:.4f}",
        is_above(("truncated ES", losses["truncated-es"]), ("PES", losses["pes"])),
        Claim(spread.is_clear, f"logarithm of its variance over that of PES above zero by {spread}"),
    )


def log_ratio_of_variances(numerator: np.ndarray, denominator: np.ndarray) -> Difference:
    """``log(var(numerator) / var(denominator))``, with the standard error that normal values have.

    The logarithm of the variance of n normal values has a standard error of about ``sqrt(2 / (n - 1))``.
    """
    both = (numerator, denominator)
    high, low = (np.log(variance(values)) for values in both)
    squares = (2 / (values.size - 1) if values.size > 1 else np.nan for values in both)
    return Difference(float(high - low), float(np.sqrt(sum(squares))))


def draw(result: Result, folder: Path) -> Sequence[Path]:
    """Draw the meta-loss of the unperturbed theta over updates, a line for each initialisation."""
    from meta_train.experiments.drawing import styles
    from meta_train.report.figures import picture

    path = folder / "learned_optimizer.png"
    every = styles(result.methods)
    with picture(path, ncols=len(every), figsize=(4.2 * len(every), 3.8), sharey=True) as (figure, axes):
        for panel, (name, style) in zip(axes, every.items(), strict=True):
            curve = result.methods[name].curve
            panel.plot(curve["update"], curve["value"].T, lw=1.3, **style)
            panel.axhline(result.pictured["adam"], color="black", lw=0.9, ls="--", label="Adam, best rate")
            panel.set(xlabel="outer update", title=METHODS[name][1])
        # The start of the lines does not matter, so the axis is limited to where they end.
        lowest = min(outcome.curve["value"].min() for outcome in result.methods.values())
        axes[0].set(ylabel="mean training loss over an episode")
        axes[0].set_ylim(0.99 * lowest, 1.1 * result.pictured["adam"])
        axes[0].legend()
        figure.suptitle("unperturbed theta on unseen seeds; a line for each initialisation of theta")
    return [path]


EXPERIMENT = Experiment(
    name="learned-optimizer",
    summary="a learned optimizer for an MLP on CIFAR-10, from several initialisations",
    source="the talk on Vicol, Metz, Sohl-Dickstein, ICML 2021 (CIFAR-10); T, K, N and sigma are ours",
    run=run,
    draw=draw,
    protocol=__doc__,
    seeds=tuple(range(8)),
    options=Options,
    spread=True,
)
