"""Cost: the cost of a PES update does not depend on the length of an episode; that of full unrolls does.

Protocol: ``digits-mlp`` is trained by the learned optimizer ``mlp`` on one device, for episodes of T = 20,
200 and 2,000 steps (at the paper scale also 20,000). K = 20. PES and full ES use one antithetic pair;
truncated backpropagation through time and backpropagation through whole episodes use one particle. Memory is
what the compiled program of an update needs in addition to its arguments, as planned by the compiler; time is
the minimum over five updates. Backpropagation keeps the inner state of every step and recomputes the rest of
the step; otherwise it would need several times as much memory.

The claim is from the talk: the memory and time of a PES update are those of a window, whatever T.

Source: Vicol, Metz, Sohl-Dickstein, ICML 2021, section 3 and Table 1.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import jax
import numpy as np
from rich.console import Console

import learned_opt
from inner_tasks import Task, Training, find_task
from meta_train.estimators import Estimator, bptt, full_es, pes, tbptt
from meta_train.experiments.base import Experiment, Outcome, Result, Settings, Verdict

TRUNCATION = 20
HORIZONS = {"small": (20, 200, 2000), "paper": (20, 200, 2000, 20_000)}
TIMES = 5
SIGMA = 0.03


class Method(NamedTuple):
    """How one method is run."""

    make: Callable[[Training], Estimator]
    label: str


METHODS = {
    "pes": Method(lambda problem: pes(problem, sigma=SIGMA, truncation=TRUNCATION), "PES"),
    "full-es": Method(lambda problem: full_es(problem, sigma=SIGMA), "full ES"),
    "tbptt": Method(lambda problem: tbptt(problem, truncation=TRUNCATION), "TBPTT"),
    "bptt": Method(bptt, "full backpropagation"),
}


class Cost(NamedTuple):
    """The cost of one update."""

    memory: float  # MiB
    seconds: float
    loss: float  # mean over the steps of the last window


def update_costs(estimator: Estimator, problem: Training, seeds: Sequence[int]) -> list[Cost]:
    """Compile an update, get its memory from the compiler, and time it with each of several thetas."""

    @jax.jit
    def start(key: jax.Array) -> tuple[Any, Any, jax.Array]:
        theta = problem.init_theta(key)
        return theta, estimator.init(key, theta, 0.0), jax.random.fold_in(key, 1)

    arguments = [start(jax.random.key(seed)) for seed in seeds]
    update = jax.jit(estimator.estimate).lower(*arguments[0]).compile()
    analysis = update.memory_analysis()
    assert analysis is not None
    memory = analysis.temp_size_in_bytes / 2**20
    costs = []
    for each in arguments:
        seconds = []
        for _ in range(TIMES):
            began = time.perf_counter()
            _, _, info = jax.block_until_ready(update(*each))
            seconds.append(time.perf_counter() - began)
        costs.append(Cost(memory, min(seconds), float(info["loss"] / info["steps"])))
    return costs


def run(settings: Settings, console: Console) -> Result:
    """Run every method with every horizon."""
    registration, horizons = find_task("digits-mlp"), HORIZONS[settings.scale]
    optimizer = learned_opt.get_architecture("mlp")
    task = registration.build(registration.settings)
    assert isinstance(task, Task)
    data = task.load(None)
    outcomes = {}
    for name, method in METHODS.items():
        costs = []
        for horizon in horizons:
            problem = Training(data, task, optimizer, horizon)
            costs.append(update_costs(method.make(problem), problem, settings.seeds))
            console.print(
                f"{method.label}, T = {horizon}: {costs[-1][0].memory:.2f} MiB, {costs[-1][0].seconds:.3g} s",
                highlight=False,
            )
        memory, seconds, loss = np.moveaxis(np.array(costs), -1, 0)
        curve = {"horizon": np.array(horizons), "memory": memory.T, "seconds": seconds.T}
        outcomes[name] = Outcome(loss[-1], np.zeros((len(settings.seeds), 0)), curve)
    return Result(outcomes, verdict(outcomes))


def growth(outcome: Outcome) -> tuple[float, float]:
    """Memory and time of an update with the longest episode, divided by those with the shortest."""
    memory, seconds = (outcome.curve[name].mean(axis=0) for name in ("memory", "seconds"))
    return float(memory[-1] / memory[0]), float(seconds[-1] / seconds[0])


def verdict(outcomes: Mapping[str, Outcome]) -> Verdict:
    """PES needs the same memory and time at every T; full ES more time; full backpropagation more of both."""
    every = {name: growth(outcome) for name, outcome in outcomes.items()}
    horizons = outcomes["pes"].curve["horizon"]
    longer = horizons[-1] / horizons[0]
    said = "; ".join(
        f"{METHODS[name].label} {memory:.2f} and {seconds:.1f}" for name, (memory, seconds) in every.items()
    )
    holds = (
        every["pes"][0] < 1.05
        and every["pes"][1] < 2
        and every["full-es"][1] > longer / 4
        and every["bptt"][0] > longer / 20
        and every["bptt"][1] > longer / 4
    )
    return Verdict(
        bool(holds),
        f"memory and time of an update with T = {horizons[-1]} over those with T = {horizons[0]}: "
        f"{said} "
        "(expected: PES about 1 and 1, full ES more time, full backpropagation more of both)",
    )


def draw(result: Result, folder: Path) -> Sequence[Path]:
    """Draw memory and time of an update over T."""
    from meta_train.experiments.drawing import styles
    from meta_train.report.figures import picture

    path = folder / "cost.png"
    with picture(path, ncols=2, figsize=(9, 3.8)) as (figure, panels):
        for axes, part, label in zip(
            panels, ("memory", "seconds"), ("memory of an update, MiB", "seconds per update"), strict=True
        ):
            for name, style in styles(result.methods).items():
                curve = result.methods[name].curve
                mean = curve[part].mean(axis=0)
                axes.loglog(curve["horizon"], mean, marker="o", label=METHODS[name].label, **style)
            axes.set(xlabel="T, steps of an episode", ylabel=label)
        panels[0].legend()
        figure.suptitle(f"one update, K = {TRUNCATION}, as an episode grows")
    return [path]


EXPERIMENT = Experiment(
    name="cost",
    summary="memory and time of an update over the length of an episode",
    source="Vicol, Metz, Sohl-Dickstein, ICML 2021, section 3",
    run=run,
    draw=draw,
    protocol=__doc__,
)
