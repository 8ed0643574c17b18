"""The comparison: a learned optimizer beside tuned hand-designed ones, on seeds that nothing has seen."""

from __future__ import annotations

import dataclasses
import inspect
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax

from inner_tasks import Training
from learned_opt import LearnedOptimizer, UserError, pretrained_names
from learned_opt._src.base import Theta
from meta_train.population import over_devices

LEARNING_RATES = np.logspace(-4, 0, 15)
# How often the grid may be lengthened by one step while its best value is an end point.
MAX_EXTENSIONS = 15
# Folded into a key where a run folds in 0, 1 or 2: so no seed of meta-training leads to evaluation's keys.
EVALUATION_SALT = 2_147_483_647

BASELINES: Mapping[str, Callable[..., optax.GradientTransformation]] = {
    "adam": optax.adam,
    "adamw": optax.adamw,
    "sgdm": lambda learning_rate: optax.sgd(learning_rate, momentum=0.9),
    "rmsprop": optax.rmsprop,
}


class Runs(NamedTuple):
    """Training runs with one optimizer, one per seed."""

    losses: np.ndarray  # float32 [seeds, steps], the loss of each step's minibatch before its update
    metrics: dict[str, np.ndarray]  # each [seeds], measured on validation data after the last step

    @property
    def mean_loss(self) -> np.ndarray:
        """Mean training loss of each run, ``[seeds]``; infinite where the run went non-finite."""
        return _finite_or_infinite(self.losses.mean(axis=1))

    @property
    def final_loss(self) -> np.ndarray:
        """Mean training loss over the last tenth of each run, ``[seeds]``."""
        last = max(1, self.losses.shape[1] // 10)
        return _finite_or_infinite(self.losses[:, -last:].mean(axis=1))


class Result(NamedTuple):
    """What an optimizer did on a task; one with a learning rate stands at the best of those tried."""

    runs: Runs
    learning_rate: float | None = None
    tried: Mapping[float, float] = {}  # learning rate -> mean training loss over steps and seeds


class Contestant(NamedTuple):
    """An optimizer to be compared.

    Attributes:
      optimizer: the update rule.
      theta: its weights; None where theta is a learning rate that is to be tuned.
    """

    optimizer: LearnedOptimizer
    theta: Theta | None


def evaluation_key(seed: jax.Array | int) -> jax.Array:
    """Key of the evaluation run number `seed`: its initialisation and its minibatches."""
    return jax.random.fold_in(jax.random.fold_in(jax.random.key(0), EVALUATION_SALT), seed)


def train(training: Training, theta: Theta, key: jax.Array) -> tuple[jax.Array, dict[str, jax.Array]]:
    """One whole training run: losses ``[T]`` and the final metrics.

    The initialisation comes from the first half of ``split(key)``, and the key of step t is number t
    of ``split(second half, T)``.
    """
    init_key, data_key = jax.random.split(key)
    state, losses = jax.lax.scan(
        lambda state, key: training.step(theta, state, key),
        training.init(init_key),
        jax.random.split(data_key, training.horizon),
    )
    return losses, training.task.metrics(state.params, training.data)


def runner(
    training: Training, seeds: int, *, devices: int, chunk: int, advance: Callable[[int], object]
) -> Callable[[Theta], list[Runs]]:
    """A function that trains with each of several thetas, on each of several seeds.

    Args:
      training: the task, with the optimizer, and as many steps as its horizon.
      seeds: number of seeds; all thetas are run on the same ones.
      devices: devices to spread the runs over.
      chunk: runs that one device works on at once.
      advance: called now and then with the number of runs that have ended since.

    Returns:
      A function of thetas, a pytree of arrays ``[n, ...]``, that gives n elements. It compiles once.
    """

    def one(training: Training, inputs: tuple[Theta, jax.Array]) -> Any:
        theta, seed = inputs
        return train(training, theta, evaluation_key(seed))

    run_all = over_devices(one, training, devices=devices, chunk=chunk, advance=advance)

    def run_seeds(thetas: Theta) -> list[Runs]:
        n = jax.tree.leaves(thetas)[0].shape[0]
        each, seed = np.divmod(np.arange(n * seeds), seeds)
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
    rates: Sequence[float] = LEARNING_RATES,
    *,
    devices: int,
    chunk: int = 1,
    watch: Callable[[int, int], object] = lambda done, total: None,
) -> Result:
    """Train with an optimizer on each seed, after finding its best learning rate if it has one.

    The rate is judged by mean training loss over steps and seeds. While the best is an end point of those
    tried, the grid goes on beyond it. It is chosen on the very runs that are reported, which favours the
    optimizers that are tuned.

    Args:
      training: the task and the number of steps; its optimizer is replaced.
      contestant: what to train with.
      seeds: number of seeds, the same for every optimizer.
      rates: learning rates to try, geometrically spaced.
      devices: devices to spread the runs over.
      chunk: runs that one device works on at once.
      watch: called now and then with the number of training runs done, and of all that are planned.
    """
    done, planned = 0, seeds

    def advance(runs: int) -> None:
        nonlocal done
        done += runs
        watch(done, planned)

    training = dataclasses.replace(training, optimizer=contestant.optimizer)
    run_seeds = runner(training, seeds, devices=devices, chunk=chunk, advance=advance)
    if contestant.theta is not None:
        return Result(run_seeds(jax.tree.map(lambda x: np.asarray(x)[None], contestant.theta))[0])
    ratio = rates[1] / rates[0] if len(rates) > 1 else 2.0
    results: dict[float, Runs] = {}
    todo = [float(rate) for rate in rates]
    for _ in range(1 + MAX_EXTENSIONS):
        planned = seeds * (len(results) + len(todo))
        runs = run_seeds(np.array(todo, np.float32))
        results |= dict(zip(todo, runs, strict=True))
        best = min(results, key=lambda rate: results[rate].mean_loss.mean())
        if best == min(results):
            todo = [best / ratio]
        elif best == max(results):
            todo = [best * ratio]
        else:
            break
    tried = {rate: float(results[rate].mean_loss.mean()) for rate in sorted(results)}
    return Result(results[best], best, tried)


def baseline(name: str) -> Contestant:
    """An optax optimizer, to be tuned.

    Args:
      name: a key of ``BASELINES``, or of an optimizer in ``optax`` whose first argument is its learning rate,
        such as ``lion``.

    Raises:
      UserError: there is none of this name.
    """
    make = BASELINES.get(name) or getattr(optax, name, None)
    if not callable(make) or next(iter(inspect.signature(make).parameters), None) != "learning_rate":
        raise UserError(
            f"'{name}' is no optimizer file, no pretrained optimizer ({', '.join(pretrained_names())}), and "
            f"no optimizer of optax that takes a learning rate, such as {', '.join(BASELINES)}"
        )

    def update(theta: jax.Array, gradients: Any, state: Any, params: Any) -> tuple[Any, Any]:
        return make(theta).update(gradients, state, params)

    return Contestant(
        LearnedOptimizer(
            init_theta=lambda key, blocks: jnp.float32(1e-3),
            init=lambda params: make(1e-3).init(params),
            update=update,
        ),
        None,
    )


def _finite_or_infinite(loss: np.ndarray) -> np.ndarray:
    return np.where(np.isfinite(loss), loss, np.inf)
