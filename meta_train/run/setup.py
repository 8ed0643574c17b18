"""Builds what a run needs from its configuration: data, problems, population and outer optimizer."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax
from rich.filesize import decimal

import learned_opt
from inner_tasks import FamilyTraining, TaskDistribution, Training, find_task, training_of
from learned_opt import UserError
from meta_train.devices.choice import memory_of_device, start_devices, units_at_once
from meta_train.estimators.base import Estimator, Theta
from meta_train.outer.loop import RunState, initial_state
from meta_train.outer.mixture import mixture
from meta_train.outer.optimizers import outer_optimizer
from meta_train.outer.parts import completed, learning_part
from meta_train.outer.population import Population, population
from meta_train.run.config import Config, start_file


class Setup(NamedTuple):
    """The objects built from a configuration."""

    trainings: Mapping[str, Training | FamilyTraining]  # the problem of each task, by the name of the task
    populate: Callable[[int], Population]  # from a number of units (antithetic pairs, or single particles)
    population: Population  # with the configured number of units
    outer_optimizer: optax.GradientTransformation
    complete: Callable[[Theta], Theta]  # all weights of the optimizer, from those that are learned
    devices: int
    chunk: int  # particles that a device works on at once
    units_at_once: int  # units that a device works on at once

    @property
    def training(self) -> Training | FamilyTraining:
        """The first problem; all have the same optimizer."""
        return next(iter(self.trainings.values()))


def prepare(config: Config, theta: Theta | None = None) -> Setup:
    """Load the data, and build the problem and its population.

    Args:
      config: the settings.
      theta: the weights that the run starts from; None for fresh ones.

    Raises:
      UserError: the data is missing, a native kernel cannot be compiled, the particles cannot be spread over
        the devices, the estimator does not support the task, the optimizer has no such parts to learn, or a
        device has too little memory even for the particles or their minibatches.
    """
    devices = start_devices(config.devices, config.estimator.units)
    learned_opt.use_native_kernels(config.native)
    task = find_task(config.task.name).build(config.task.settings)
    tasks = task.members if isinstance(task, TaskDistribution) else {config.task.name: task}
    optimizer = learned_opt.get_architecture(config.optimizer)
    chunk = units_at_once(config.chunk, config.estimator.particles)
    method = config.estimator.method
    estimator = partial(method.make, **config.estimator.settings)
    if method.particles == 2:
        estimator = partial(estimator, chunk=chunk)
    trainings = [training_of(each, optimizer, config.task.objective) for each in tasks.values()]
    weights: Theta = {}
    if config.learn:
        weights = _initial(config, trainings[0], theta)
        partly = learning_part(optimizer, weights, config.learn)
        trainings = [training_of(each, partly, config.task.objective) for each in tasks.values()]
    at_once = max(1, chunk // method.particles)
    # What can be known without data and without compiling anything is checked first.
    particles = sum(_bytes_of_unit(estimator, each) for each in trainings) * config.estimator.units // devices
    check_device_memory(particles, chunk, "at least ")
    data = [each.load(config.data_dir) for each in tasks.values()]
    trainings = [dataclasses.replace(each, data=own) for each, own in zip(trainings, data, strict=True)]
    batches = max(_bytes_of_minibatch(each) for each in trainings) * at_once
    check_device_memory(particles + batches, chunk, "at least ")

    def populate(units: int) -> Population:
        each = [population(estimator, one, units=units, devices=devices, chunk=at_once) for one in trainings]
        return mixture(dict(zip(tasks, each, strict=True))) if len(each) > 1 else each[0]

    return Setup(
        trainings=dict(zip(tasks, trainings, strict=True)),
        populate=populate,
        population=populate(config.estimator.units),
        outer_optimizer=outer_optimizer(config.outer, config.updates),
        complete=partial(completed, weights),
        devices=devices,
        chunk=chunk,
        units_at_once=at_once,
    )


def check_device_memory(needed: int, chunk: int, least: str = "") -> None:
    """Check that a device has the memory that a run needs.

    Args:
      needed: bytes on each device.
      chunk: particles that a device works on at once, for the message.
      least: ``at least``, if only a part is known.

    Raises:
      UserError: a device does not have that much.
    """
    there_is = memory_of_device()
    if there_is is not None and needed > there_is:
        raise UserError(
            f"the run would need {least}{decimal(needed)} on each device, but a device has "
            f"{decimal(there_is)}; try a smaller --chunk (it is {chunk}), fewer --estimator.particles, a "
            "smaller task, or more devices"
        )


def _bytes_of_unit(make: Callable[..., Estimator], training: Training | FamilyTraining) -> int:
    """Size of the state of one unit; the estimator rejects a problem that it does not support."""

    def start(key: jax.Array) -> Any:
        return make(training).init(key, training.init_theta(key), 0.0)

    return _bytes(jax.eval_shape(start, jax.random.key(0)))


def _bytes_of_minibatch(training: Training | FamilyTraining) -> int:
    """Size of a minibatch; those of a family are small."""
    if isinstance(training, FamilyTraining):
        return 0
    return _bytes(jax.eval_shape(training.task.sample, training.data, jax.random.key(0)))


def _bytes(shapes: Any) -> int:
    return sum(leaf.size * leaf.dtype.itemsize for leaf in jax.tree.leaves(shapes))


def origin(config: Config) -> Path | None:
    """The optimizer file that a run starts from, if any.

    Raises:
      UserError: it does not exist, is not an intact optimizer file, or has another architecture.
    """
    if config.start_from is None:
        return None
    path = start_file(config.start_from)
    architecture = learned_opt.read(path).architecture
    if architecture != config.optimizer:
        raise UserError(
            f"--start-from {config.start_from} holds a '{architecture}', but --optimizer is "
            f"'{config.optimizer}'; leave --optimizer out, or give --optimizer {architecture}"
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
    # If only a part is learned, `prepare` has taken the initial weights.
    theta = _initial(config, setup.training, None if config.learn else theta)
    return initial_state(setup.population, setup.outer_optimizer, theta, jax.random.key(config.seed))


def _initial(config: Config, training: Training | FamilyTraining, theta: Theta | None) -> Theta:
    """The weights that a run starts from: those given, or fresh ones.

    Raises:
      UserError: they are for a different number of parameter tensors than the task has.
    """
    fresh = jax.jit(training.init_theta)(jax.random.fold_in(jax.random.key(config.seed), 0))
    theta = fresh if theta is None else jax.tree.map(jnp.asarray, theta)
    if jax.tree.map(jnp.shape, theta) != jax.tree.map(jnp.shape, fresh):
        raise UserError(
            "--start-from holds hyperparameters for a different number of tensors than the task has"
        )
    return theta
