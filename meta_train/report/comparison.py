"""A comparison of optimizers on one task, on the same seeds."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager
from functools import partial
from typing import NamedTuple

import numpy as np

from inner_tasks import Training
from inner_tasks.task import trained
from meta_train.report.costs import Cost, gradient_seconds, update_costs
from meta_train.report.evaluation import (
    LEARNING_RATES,
    MEAN_LOSS,
    Contestant,
    Criterion,
    Result,
    first_params,
    run,
)

# Adam with a constant learning rate, the reference of ratios and speed-ups.
REFERENCE = "adam"

# ``obtain(name, make)`` returns the result of an optimizer, from ``make()`` or from where it was kept.
Obtain = Callable[[str, Callable[[], Result]], Result]

# ``watch(name)`` returns a context manager that yields a callback ``(runs done, runs planned)``.
Watch = Callable[[str], AbstractContextManager[Callable[[int, int], object]]]


class Comparison(NamedTuple):
    """Optimizers on one task, on the same seeds; tuned Adam is one of them.

    Attributes:
      task: name of the task.
      steps: training steps of each run.
      results: the result of each optimizer.
      costs: the cost of an update of each on this machine.
      gradient_seconds: the time of a step's gradient on this machine.
      criterion: the criterion that they are ranked by.
    """

    task: str
    steps: int
    results: dict[str, Result]
    costs: dict[str, Cost]
    gradient_seconds: float
    criterion: Criterion = MEAN_LOSS

    @property
    def seeds(self) -> int:
        """Number of training runs of each optimizer."""
        return self.results[REFERENCE].runs.losses.shape[0]

    @property
    def ranking(self) -> list[str]:
        """The optimizers, best first."""
        return sorted(self.results, key=self.score)

    @property
    def best(self) -> str:
        """The best optimizer among those whose learning rate was tuned."""
        return next(name for name in self.ranking if self.results[name].tried)

    def score(self, name: str) -> float:
        """The criterion of an optimizer, averaged over the seeds; lower is better."""
        return float(self.criterion.of(self.results[name].runs).mean())

    def ratio_to_best(self, name: str) -> float:
        """Score of an optimizer divided by that of the best tuned one; below 1, the optimizer is better."""
        return self._ratio(name, self.best)

    def ratio_to_adam(self, name: str) -> float:
        """Score of an optimizer divided by that of tuned Adam; below 1, the optimizer is better."""
        return self._ratio(name, REFERENCE)

    def _ratio(self, name: str, other: str) -> float:
        """Ratio of two scores; NaN if the other one is not positive and finite."""
        own, reference = self.score(name), self.score(other)
        return own / reference if 0 < reference < np.inf else np.nan

    def steps_to_adam(self, name: str) -> int | None:
        """Steps until an optimizer's loss first reaches the final loss of tuned Adam; None if it never does.

        Both losses are means over a tenth of the run and over the seeds: Adam's over its last tenth, the
        optimizer's over the tenth that ends with the step. For Adam itself, its steps to its own final loss.
        """
        reached = np.flatnonzero(self._running_loss(name) <= self._running_loss(REFERENCE)[-1])
        return int(reached[0]) + self._window if reached.size else None

    def speed_up(self, name: str) -> float | None:
        """Adam's steps to its final loss, divided by the optimizer's; None if that never reaches it."""
        own, adam = self.steps_to_adam(name), self.steps_to_adam(REFERENCE)
        return adam / own if own and adam else None

    @property
    def _window(self) -> int:
        return max(1, self.steps // 10)

    def _running_loss(self, name: str) -> np.ndarray:
        """Training loss, averaged over seeds and over the window that ends with the step."""
        losses = self.results[name].runs.losses.mean(axis=0)
        return np.convolve(losses, np.full(self._window, 1 / self._window), mode="valid")

    def step_seconds(self, name: str) -> float:
        """Time of a training step (gradient and update) with an optimizer on one device of this machine."""
        return self.gradient_seconds + self.costs[name].seconds

    def relative_cost(self, name: str) -> tuple[float, float]:
        """Time and memory of an optimizer's update, divided by Adam's."""
        own, adam = self.costs[name], self.costs[REFERENCE]
        return own.seconds / adam.seconds, own.state_bytes / adam.state_bytes

    def failed(self, name: str) -> bool:
        """Whether an optimizer's loss ends non-finite or above its initial value on any seed."""
        runs = self.results[name].runs
        return not bool((runs.final_loss <= runs.losses[:, 0]).all())


def learning_rates(count: int) -> np.ndarray:
    """A grid of `count` learning rates over the range of the full grid."""
    return np.logspace(np.log10(LEARNING_RATES[0]), np.log10(LEARNING_RATES[-1]), count)


def compare(
    task: str,
    training: Training,
    contestants: Mapping[str, Contestant],
    *,
    seeds: int,
    rates: Sequence[float] | np.ndarray,
    criterion: Criterion,
    devices: int,
    chunk: int,
    watch: Watch,
    obtain: Obtain = lambda name, make: make(),
) -> Comparison:
    """Run every optimizer, and measure the cost of its steps.

    Args:
      task: name of the task, for the report.
      training: the task; its horizon is the number of steps.
      contestants: the optimizers, including Adam.
      seeds: number of seeds, the same for all.
      rates: learning rates to try for those that are tuned.
      criterion: what they are tuned and ranked by.
      devices: number of devices to spread the runs over.
      chunk: runs that one device works on at once.
      watch: shows the progress of each optimizer.
      obtain: gets the result of each optimizer, by default by running it.
    """

    def result_of(name: str) -> Result:
        with watch(name) as advance:
            return run(
                training,
                contestants[name],
                seeds,
                rates,
                criterion=criterion,
                devices=devices,
                chunk=chunk,
                watch=advance,
            )

    results = {name: obtain(name, partial(result_of, name)) for name in contestants}
    params = first_params(training, devices=devices, chunk=chunk)
    costs = update_costs(trained(params), contestants)
    return Comparison(task, training.horizon, results, costs, gradient_seconds(training, params), criterion)
