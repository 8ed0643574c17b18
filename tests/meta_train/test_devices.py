"""Devices: the two strategies, the choice of devices."""

from __future__ import annotations

import math
import re
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from inner_tasks import FamilyTraining, UnrolledProblem, find_task
from inner_tasks.tasks.general_tasks import FAMILIES
from learned_opt import get_architecture
from meta_train.devices.choice import even_devices, units_at_once
from meta_train.devices.mapping import PMAP, SHARD_MAP, STRATEGY, Strategy, in_groups, map_rows
from meta_train.estimators import pes
from meta_train.estimators.base import Theta
from meta_train.estimators.metrics import SUMS
from meta_train.outer.population import population
from tests.marks import slow
from tests.meta_train.problems import Pendulum

PENDULUM = {"damping": jnp.float32(0.8), "push": jnp.float32(0.2)}


def updates_of(
    problem: UnrolledProblem, theta: Theta, devices: int, strategy: Strategy = STRATEGY
) -> list[np.ndarray]:
    """All results of two updates, with the state gathered and scattered in between."""
    whole = population(
        partial(pes, sigma=0.1, truncation=4), problem, units=8, devices=devices, strategy=strategy
    )
    state, estimates = whole.init(jax.random.key(0), theta), []
    for number in range(2):
        gradient, state, metrics = whole.estimate(theta, state, jax.random.key(number))
        estimates.append((gradient, metrics))
        theta = jax.tree.map(lambda t, g: t - 0.1 * g, theta, gradient)
        gathered = whole.gather(state)
        state = whole.scatter(gathered)
    assert whole.memory(jax.eval_shape(lambda: theta)).held > 0
    return jax.tree.leaves((estimates, gathered))


@pytest.mark.parametrize("devices", [slow(1), 2])
def test_both_strategies_give_the_same_bits(devices: int) -> None:
    expected = updates_of(Pendulum(), PENDULUM, devices, PMAP)
    assert len(expected) > 20 and np.all(np.isfinite(expected[0]))
    for one, other in zip(expected, updates_of(Pendulum(), PENDULUM, devices, SHARD_MAP), strict=True):
        np.testing.assert_array_equal(one, other)


@pytest.mark.slow
@pytest.mark.parametrize("name", FAMILIES)
def test_number_of_devices_changes_no_bit_of_a_family(name: str, optimized: None) -> None:
    """XLA may compile the same training step differently in a program for many devices."""
    family, optimizer = FAMILIES[name](find_task("general-tasks").settings), get_architecture("muon-mlp")
    problem = FamilyTraining(family.load(None), family, optimizer)
    theta = optimizer.init_theta(jax.random.key(0), 1)
    one, two = (updates_of(problem, theta, devices) for devices in (1, 2))
    assert len(one) > 20 and np.all(np.isfinite(one[0]))
    jax.tree.map(np.testing.assert_array_equal, one, two)


@pytest.mark.parametrize("strategy", [PMAP, SHARD_MAP], ids=["pmap", "shard_map"])
def test_a_function_is_mapped_in_order(strategy: Strategy) -> None:
    """Also through two programs, and if the last group is not full; each element sees what is shared."""
    done: list[int] = []
    sizes = {"devices": 2, "chunk": 3, "strategy": strategy}
    moved = map_rows(lambda shared, x: x["value"] + shared, 1.0, **sizes)
    scaled = map_rows(lambda shared, x: shared["factor"] * x, {"factor": jnp.arange(1.0, 4.0)}, **sizes)
    mapped = in_groups(lambda rows: scaled(moved(rows)), advance=done.append, **sizes)
    values = np.arange(8, dtype=np.float32)
    np.testing.assert_array_equal(mapped({"value": values}), np.outer(values + 1, [1, 2, 3]))
    assert done == [6, 2]


def test_how_many_units_a_device_works_on() -> None:
    assert jax.default_backend() == "cpu"
    assert units_at_once("auto", 1000) == 1
    assert units_at_once(7, 1000) == 7


def test_devices_divide_a_population_evenly() -> None:
    assert [even_devices(available, 12) for available in (1, 5, 7, 100)] == [1, 4, 6, 12]
    assert even_devices(5, 7) == 1


def numbers_sent(units: int, monkeypatch: pytest.MonkeyPatch) -> int:
    """How many numbers a device receives in an update on four devices, from the compiled program."""
    programs: list[str] = []
    pmap = jax.pmap

    class Compiled:
        """What ``jax.pmap`` returns, which keeps the program that it compiles for an analysis."""

        def __init__(self, *args: Any, **kwargs: Any) -> None:
            self._mapped = pmap(*args, **kwargs)

        def __call__(self, *args: Any) -> Any:
            return self._mapped(*args)

        def lower(self, *args: Any) -> Any:
            lowered = self._mapped.lower(*args)
            programs.append(lowered.compile().as_text())
            return lowered

    with monkeypatch.context() as patched:
        patched.setattr(jax, "pmap", Compiled)
        whole = population(partial(pes, sigma=0.1, truncation=4), Pendulum(), units=units, devices=4)
        whole.memory({"damping": jnp.float32(0.8), "push": jnp.float32(0.2)})
    (program,) = programs
    kinds = "all-gather|all-reduce|all-to-all|collective-permute|collective-broadcast|reduce-scatter"
    collectives = re.findall(rf"= (\S+) ({kinds})\S*\(", program)
    assert {operation for _, operation in collectives} == {"all-gather"}
    shapes = [re.findall(r"\[([\d,]+)\]", result) for result, _ in collectives]
    return sum(math.prod(map(int, shape.split(","))) for result in shapes for shape in result)


def test_only_the_partial_sums_cross_devices(monkeypatch: pytest.MonkeyPatch) -> None:
    """Not the particles, and nothing that grows with their number."""
    each = numbers_sent(8, monkeypatch) / 8  # both entries of theta, the squared norm, and the metrics
    assert each == 2 + 1 + len(SUMS)
    assert numbers_sent(512, monkeypatch) == numbers_sent(1024, monkeypatch) == 256 * each
