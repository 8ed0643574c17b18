"""Training runs with an optimizer; its learning rate, if any, is tuned on seeds other than those reported."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterable, Mapping, Sequence
from functools import partial
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from inner_tasks import Training
from inner_tasks.task import Params
from learned_opt import LearnedOptimizer, UserError
from learned_opt._src.learned_optimizer import Theta
from meta_train.devices.choice import memory_of_host
from meta_train.devices.mapping import in_groups, map_rows

LEARNING_RATES = np.logspace(-4, 0, 15)
# How many times the grid may be extended by one step while its best value is an end point.
MAX_EXTENSIONS = 15
# Folded into a key where a run folds in 0, 1 or 2, so that no seed of meta-training gives evaluation's keys.
EVALUATION_SALT = 2_147_483_647

# Learning rates are tuned on seeds from this one on; optimizers are reported on seeds from 0 on.
FIRST_TUNING_SEED = 2_000_000_000
# A grid is too coarse if even the better neighbour of the best rate is worse by more than this share.
COARSE = 0.25


class Runs(NamedTuple):
    """Training runs with one optimizer, one per seed."""

    losses: np.ndarray  # float32 [seeds, steps], the loss of each step's minibatch before its update
    metrics: dict[str, np.ndarray]  # each [seeds], measured on validation data after the last step

    @property
    def mean_loss(self) -> np.ndarray:
        """Mean training loss of each run, ``[seeds]``; infinite if the run became non-finite."""
        return _finite_or_infinite(self.losses.mean(axis=1))

    @property
    def final_loss(self) -> np.ndarray:
        """Mean training loss over the last tenth of each run, ``[seeds]``."""
        last = max(1, self.losses.shape[1] // 10)
        return _finite_or_infinite(self.losses[:, -last:].mean(axis=1))


class Criterion(NamedTuple):
    """The criterion that optimizers are tuned and ranked by; lower is better.

    Attributes:
      key: its name in ``summary.json``.
      label: its name in tables and pictures.
      measure: its value for each run, ``[seeds]``.
      metric: the metric of the task that it reads, if any.
    """

    key: str
    label: str
    measure: Callable[[Runs], np.ndarray]
    metric: str | None = None

    def of(self, runs: Runs) -> np.ndarray:
        """Its value for each run, ``[seeds]``; infinite if a loss or the value itself is not finite."""
        return np.where(np.isfinite(runs.losses).all(axis=1), _finite_or_infinite(self.measure(runs)), np.inf)


MEAN_LOSS = Criterion("mean_loss", "mean training loss", lambda runs: runs.mean_loss)
MEAN_AND_VALIDATION_LOSS = Criterion(
    "mean_and_validation_loss",
    "mean of mean training loss and final validation loss",
    lambda runs: (runs.mean_loss + runs.metrics["validation_loss"]) / 2,
    "validation_loss",
)
CRITERIA: Mapping[str, Criterion] = {
    "training-loss": MEAN_LOSS,
    "later-training-loss": MEAN_LOSS,
    "final-loss": Criterion("final_loss", "final training loss", lambda runs: runs.final_loss),
    "mean-and-end": Criterion(
        "mean_and_final_loss",
        "mean of mean and final training loss",
        lambda runs: (runs.mean_loss + runs.final_loss) / 2,
    ),
    "mean-and-validation-end": MEAN_AND_VALIDATION_LOSS,
    "log-mean-and-validation-end": MEAN_AND_VALIDATION_LOSS,
    "validation-loss": Criterion(
        "validation_loss",
        "final validation loss",
        lambda runs: runs.metrics["validation_loss"],
        "validation_loss",
    ),
    "validation-accuracy": Criterion(
        "validation_error",
        "final validation error",
        lambda runs: 1 - runs.metrics["validation_accuracy"],
        "validation_accuracy",
    ),
}


def find_criterion(objectives: Iterable[str], metrics: Iterable[Iterable[str]]) -> Criterion:
    """The criterion that optimizers are ranked by.

    Args:
      objectives: the objectives that they were meta-trained on.
      metrics: for each task that they are compared on, the names of its metrics.

    Returns:
      The criterion of the objective; mean training loss if there are several objectives or none, or if a task
      lacks the metric that the criterion reads.
    """
    objectives = set(objectives)
    if len(objectives) != 1:
        return MEAN_LOSS
    criterion = CRITERIA.get(objectives.pop(), MEAN_LOSS)
    if criterion.metric is None or all(criterion.metric in names for names in metrics):
        return criterion
    return MEAN_LOSS


def metrics_of(training: Training) -> list[str]:
    """The names of the metrics that a task measures after the last step."""
    task, key = training.task, jax.random.key(0)
    return list(jax.eval_shape(lambda: task.metrics(task.init(key), training.data)))


class Result(NamedTuple):
    """The result of an optimizer on a task, at the best of the learning rates tried if it has one."""

    runs: Runs
    learning_rate: float | None = None
    # learning rate -> criterion, mean over the tuning seeds; in the order of the rates
    tried: Mapping[float, float] = {}

    @property
    def coarse(self) -> str | None:
        """The evidence, if any, that the learning rates are too far apart or span too small a range."""
        if self.learning_rate is None:
            return None
        rates = list(self.tried)
        index, best = rates.index(self.learning_rate), self.tried[self.learning_rate]
        if not np.isfinite(best):
            return "no rate gave runs that stayed finite"
        if index in (0, len(rates) - 1):
            return f"the best rate, {self.learning_rate:.1e}, is at the end of those tried"
        neighbour = min(self.tried[rates[index - 1]], self.tried[rates[index + 1]])
        if neighbour > (1 + COARSE) * best:
            rate = f"{self.learning_rate:.1e}"
            return f"the better neighbour of {rate} gives {neighbour:.3g} instead of {best:.3g}"
        return None


class Contestant(NamedTuple):
    """An optimizer to compare.

    Attributes:
      optimizer: the update rule.
      theta: its weights; None if theta is a learning rate to tune.
    """

    optimizer: LearnedOptimizer
    theta: Theta | None


def check_host_memory(steps: int, seeds: int, rates: int) -> None:
    """Check that this machine can hold the losses of all runs with one optimizer.

    Args:
      steps: number of steps of each run.
      seeds: number of seeds.
      rates: number of learning rates to try.

    Raises:
      UserError: it cannot.
    """
    needed, there_is = 4 * steps * seeds * rates, memory_of_host()
    if there_is is not None and needed > there_is:
        raise UserError(
            f"the comparison would need {needed / 1e9:,.0f} GB for the losses of {seeds} seeds x {rates} "
            f"learning rates x {steps} steps, but this machine has {there_is / 1e9:,.0f} GB; lower one of "
            "these numbers"
        )


def evaluation_key(seed: jax.Array | int) -> jax.Array:
    """Key of the evaluation run number `seed`: its initialisation and its minibatches."""
    return jax.random.fold_in(jax.random.fold_in(jax.random.key(0), EVALUATION_SALT), seed)


class Start(NamedTuple):
    """The start of a training run, which is the same for every optimizer."""

    params: Params  # fresh parameters
    keys: jax.Array  # the keys of the steps, [T]


def start_of_run(training: Training, seed: jax.Array | int) -> Start:
    """The start of the evaluation run number `seed`.

    The first key of ``split(evaluation_key(seed))`` is for the initialisation; splitting the second into T
    gives the keys of the steps.
    """
    init_key, data_key = jax.random.split(evaluation_key(seed))
    return Start(training.task.init(init_key), jax.random.split(data_key, training.horizon))


def train(training: Training, inputs: tuple[Theta, Start]) -> tuple[jax.Array, Params]:
    """One complete training run: losses ``[T]``, and the parameters after the last step."""
    theta, start = inputs
    state, losses = jax.lax.scan(
        lambda state, key: training.step(theta, state, key), training.begin(start.params), start.keys
    )
    # Losses of parameters with 16 bits may have 16 bits too, which are too few for a mean over many steps.
    return losses.astype(jnp.float32), state.params


def measure(training: Training, params: Params) -> dict[str, jax.Array]:
    """The metrics of a run that ended with these parameters."""
    return training.task.metrics(params, training.data)


def first_params(training: Training, *, devices: int, chunk: int) -> Params:
    """The parameters that the run number 0 starts from."""
    start = map_rows(start_of_run, training, devices=devices, chunk=chunk)
    params = in_groups(lambda seeds: start(seeds).params, devices=devices, chunk=chunk)(np.zeros(1, int))
    return jax.tree.map(lambda x: x[0], params)


def runner(
    training: Training,
    optimizer: LearnedOptimizer,
    *,
    devices: int,
    chunk: int,
    advance: Callable[[int], object],
) -> Callable[[Theta, Sequence[int]], list[Runs]]:
    """A function that trains with each of several thetas on each of several seeds.

    Args:
      training: the task and the number of steps; its optimizer is replaced.
      optimizer: the optimizer to train with.
      devices: number of devices to spread the runs over.
      chunk: runs that one device works on at once.
      advance: called from time to time with the number of runs finished since the last call.

    Returns:
      A function of thetas, a pytree of arrays ``[n, ...]``, and seeds, the same for all thetas, that returns
      the runs of each theta. It compiles once.
    """
    # Three programs, since only the second depends on the optimizer: a comparison compiles the others once.
    over_devices = partial(map_rows, devices=devices, chunk=chunk)
    start_all, measure_all = over_devices(start_of_run, training), over_devices(measure, training)
    train_all = over_devices(train, dataclasses.replace(training, optimizer=optimizer))

    def runs_of(rows: tuple[Theta, jax.Array]) -> tuple[jax.Array, dict[str, jax.Array]]:
        theta, seed = rows
        losses, params = train_all((theta, start_all(seed)))
        return losses, measure_all(params)

    run_all = in_groups(runs_of, devices=devices, chunk=chunk, advance=advance)

    def run_seeds(thetas: Theta, seeds: Sequence[int]) -> list[Runs]:
        n = jax.tree.leaves(thetas)[0].shape[0]
        each, seed = np.repeat(np.arange(n), len(seeds)), np.tile(np.asarray(seeds), n)
        losses, metrics = run_all((jax.tree.map(lambda x: np.asarray(x)[each], thetas), seed))
        return [
            Runs(losses[each == i], {name: value[each == i] for name, value in metrics.items()})
            for i in range(n)
        ]

    return run_seeds


def run(
    training: Training,
    contestant: Contestant,
    seeds: int,
    rates: Sequence[float] | np.ndarray = LEARNING_RATES,
    *,
    criterion: Criterion = MEAN_LOSS,
    devices: int,
    chunk: int = 1,
    watch: Callable[[int, int], object] = lambda done, total: None,
) -> Result:
    """Train with an optimizer on each seed, after tuning its learning rate if it has one.

    The rate is tuned on an equal number of other seeds, which are used for nothing else. While the best rate
    is an end point of those tried, the grid is extended beyond it.

    Args:
      training: the task and the number of steps; its optimizer is replaced.
      contestant: the optimizer to train with.
      seeds: number of seeds, the same for every optimizer.
      rates: learning rates to try, geometrically spaced, ascending.
      criterion: the criterion that the rate is chosen by.
      devices: number of devices to spread the runs over.
      chunk: runs that one device works on at once.
      watch: called from time to time with the number of training runs done and planned.
    """
    reporting, tuning = range(seeds), range(FIRST_TUNING_SEED, FIRST_TUNING_SEED + seeds)
    done, planned = 0, seeds

    def advance(runs: int) -> None:
        nonlocal done
        done += runs
        watch(done, planned)

    run_seeds = runner(training, contestant.optimizer, devices=devices, chunk=chunk, advance=advance)
    if contestant.theta is not None:
        return Result(run_seeds(jax.tree.map(lambda x: np.asarray(x)[None], contestant.theta), reporting)[0])
    ratio = rates[1] / rates[0] if len(rates) > 1 else 2.0
    tried: dict[float, float] = {}
    todo = [float(rate) for rate in rates]
    for _ in range(1 + MAX_EXTENSIONS):
        planned = seeds * (len(tried) + len(todo) + 1)
        for rate, runs in zip(todo, run_seeds(np.array(todo, np.float32), tuning), strict=True):
            tried[rate] = float(criterion.of(runs).mean())
        best = min(tried, key=tried.__getitem__)
        if best == min(tried):
            todo = [best / ratio]
        elif best == max(tried):
            todo = [best * ratio]
        else:
            break
    (runs,) = run_seeds(np.array([best], np.float32), reporting)
    return Result(runs, best, dict(sorted(tried.items())))


def _finite_or_infinite(loss: np.ndarray) -> np.ndarray:
    return np.where(np.isfinite(loss), loss, np.inf)
