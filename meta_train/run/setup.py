"""Builds what a run needs from its configuration: data, problems, population and outer optimizer."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax

import learned_opt
from inner_tasks import FamilyTraining, TaskDistribution, Training, find_task, training_of
from learned_opt import UserError
from learned_opt._src.pretrained import find_optimizer
from meta_train.devices.choice import start_devices, units_at_once
from meta_train.estimators.base import Estimator, Theta
from meta_train.outer.loop import RunState, initial_state
from meta_train.outer.mixture import mixture
from meta_train.outer.optimizers import outer_optimizer
from meta_train.outer.population import Population, population
from meta_train.run.config import Config


class Setup(NamedTuple):
    """The objects built from a configuration."""

    tasks: tuple[str, ...]  # names of the tasks that meta-training uses
    training: Training | FamilyTraining  # the first of them, which the report shows
    populate: Callable[[int], Population]  # from a number of units (antithetic pairs, or single particles)
    population: Population  # with the configured number of units
    outer_optimizer: optax.GradientTransformation
    devices: int
    chunk: int  # particles that a device works on at once
    units_at_once: int  # units that a device works on at once


def prepare(config: Config) -> Setup:
    """Load the data, and build the problem and its population.

    Raises:
      UserError: the data is missing, the particles cannot be spread over the devices, or the estimator
        does not support the task.
    """
    devices = start_devices(config.devices, config.estimator.units)
    task = find_task(config.task.name).build(config.task.settings)
    tasks = task.members if isinstance(task, TaskDistribution) else {config.task.name: task}
    optimizer = learned_opt.get_architecture(config.optimizer)
    chunk = units_at_once(config.chunk, config.estimator.particles)
    method = config.estimator.method
    estimator = partial(method.make, **config.estimator.settings)
    if method.particles == 2:
        estimator = partial(estimator, chunk=chunk)
    trainings = [training_of(each, optimizer, config.task.objective) for each in tasks.values()]
    for training in trainings:
        _check_estimator(estimator, training)
    data = [each.load(config.data_dir) for each in tasks.values()]
    trainings = [dataclasses.replace(each, data=own) for each, own in zip(trainings, data, strict=True)]
    at_once = max(1, chunk // method.particles)

    def populate(units: int) -> Population:
        each = [population(estimator, one, units=units, devices=devices, chunk=at_once) for one in trainings]
        return mixture(dict(zip(tasks, each, strict=True))) if len(each) > 1 else each[0]

    return Setup(
        tasks=tuple(tasks),
        training=trainings[0],
        populate=populate,
        population=populate(config.estimator.units),
        outer_optimizer=outer_optimizer(config.outer, config.updates),
        devices=devices,
        chunk=chunk,
        units_at_once=at_once,
    )


def _check_estimator(make: Callable[..., Estimator], training: Training | FamilyTraining) -> None:
    """Let the estimator reject an unsupported problem before data is loaded or anything is run."""

    def start(key: jax.Array) -> Any:
        return make(training).init(key, training.init_theta(key), 0.0)

    jax.eval_shape(start, jax.random.key(0))


def origin(config: Config) -> Path | None:
    """The optimizer file that a run starts from, if any.

    Raises:
      UserError: it does not exist, is not an intact optimizer file, or has another architecture.
    """
    if config.start_from is None:
        return None
    path = find_optimizer(config.start_from)
    if path is None:
        raise UserError(
            f"--start-from is {config.start_from}, which is not an optimizer file, a run folder or a "
            f"pretrained optimizer ({', '.join(learned_opt.pretrained_names())})"
        )
    architecture = learned_opt.read(path).architecture
    if architecture != config.optimizer:
        raise UserError(
            f"--start-from {config.start_from} holds a '{architecture}', but --optimizer is "
            f"'{config.optimizer}'; give --optimizer {architecture}"
        )
    return path


def start(config: Config, setup: Setup, theta: Theta | None = None) -> RunState:
    """The state before the first update, from the seed and the initial weights.

    Args:
      config: the settings.
      setup: the objects built from them.
      theta: the initial weights; None for fresh ones.

    Raises:
      UserError: the weights are for a different number of parameter tensors than the task has.
    """
    key = jax.random.key(config.seed)
    fresh = jax.jit(setup.training.init_theta)(jax.random.fold_in(key, 0))
    theta = fresh if theta is None else jax.tree.map(jnp.asarray, theta)
    if jax.tree.map(jnp.shape, theta) != jax.tree.map(jnp.shape, fresh):
        raise UserError(
            "--start-from holds hyperparameters for a different number of tensors than the task has"
        )
    return initial_state(setup.population, setup.outer_optimizer, theta, key)
