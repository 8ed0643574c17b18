"""Particle-steps per second of meta-training, and where the time goes."""

from __future__ import annotations

import argparse
import statistics
import tempfile
import time
from collections import Counter
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, NamedTuple

import jax
from common import configured, updating

import gpu_steps.random_data  # noqa: F401  (registers its tasks)
from gpu_steps.forms import form
from meta_train.devices.choice import start_devices
from meta_train.outer.population import Memory
from meta_train.run.setup import Setup, prepare

TRUNCATION = 20
SECONDS = 1.5  # time for which each population is measured
PROFILED = 2  # updates
SHOWN = 6  # operations of a profile


class Size(NamedTuple):
    """A population."""

    task: str
    particles: int
    chunk: int | str = "auto"
    optimizer: str = "mlp"


# In order of importance.
POPULATIONS = (
    Size("random-cifar10-mlp", 64),
    Size("digits-mlp", 4096),
    Size("random-mnist-mlp", 1024),
    Size("digits-mlp", 16),
    Size("digits-mlp", 4096, optimizer="nadam-mlp"),
    Size("random-mnist-mlp", 1024, optimizer="nadam-mlp"),
    Size("digits-mlp", 1024, optimizer="muon-mlp"),
    Size("random-cifar10-mlp", 1024),
    Size("digits-mlp", 16384),
    Size("random-mnist-mlp", 4096),
    Size("random-mnist-mlp", 16),
    Size("random-cifar10-mlp", 16),
    Size("random-mnist-mlp", 64),
    Size("digits-mlp", 4096, 512),
    Size("random-mnist-mlp", 4096, 512),
    Size("random-cifar10-mlp", 1024, 128),
    Size("digits-mlp", 64),
    Size("digits-mlp", 1024),
    Size("random-mnist-mlp", 16384),
    Size("random-cifar10-mlp", 4096, 512),
)
MINIATURE = (Size("digits-mlp", 4),)
AT_ONCE = 8  # populations that are compiled at the same time


def run(emit: Callable[..., None], arguments: argparse.Namespace) -> None:
    """Emit one line for each population, and one for the unfused form of the first."""
    start_devices(1)
    populations = MINIATURE if arguments.miniature else POPULATIONS
    for first in range(0, len(populations), AT_ONCE):
        few = populations[first : first + AT_ONCE]
        with ThreadPoolExecutor() as pool:
            prepared = list(pool.map(_prepared, few))
        for population, ready in zip(few, prepared, strict=True):
            emit(**population._asdict(), **_measured(ready))
        if not arguments.miniature and not first:
            with form(kernel=False):
                emit(form="unfused", **few[0]._asdict(), **_measured(_prepared(few[0])))


class Ready(NamedTuple):
    """A population whose update is compiled."""

    particles: int
    setup: Setup
    memory: Memory
    seconds: float  # to compile it, at the same time as others


def _prepared(size: Size) -> Ready | Exception:
    """Compile an update; the program stays in the cache of compiled programs."""
    try:
        config = configured(**size._asdict(), truncation=TRUNCATION, devices=1)
        setup = prepare(config)
        began = time.perf_counter()
        memory = setup.population.memory(jax.eval_shape(setup.training.init_theta, jax.random.key(0)))
        return Ready(size.particles, setup, memory, time.perf_counter() - began)
    except Exception as error:
        return error


def _measured(ready: Ready | Exception) -> dict[str, Any]:
    """The rate, memory and profile of a population; or what failed, such as too little memory."""
    if isinstance(ready, Exception):
        return {"failed": f"{type(ready).__name__}: {str(ready)[:300]}"}
    described = {
        "seconds_to_compile": round(ready.seconds, 1),
        "gigabytes_estimated": sum(ready.memory) / 1e9,
    }
    limit = (jax.devices()[0].memory_stats() or {}).get("bytes_limit")
    if limit is not None and sum(ready.memory) > limit:
        return described | {"gigabytes_there": limit / 1e9}
    try:
        turn = updating(ready.setup)
        turn()
        seconds = []
        while sum(seconds) < SECONDS:
            began = time.perf_counter()
            turn()
            seconds.append(time.perf_counter() - began)
        in_use = (jax.devices()[0].memory_stats() or {}).get("bytes_in_use", 0)
        update = statistics.median(seconds)
        return {
            "particle_steps_a_second": ready.particles * TRUNCATION / update,
            "seconds_an_update": update,
            **described,
            "gigabytes_between_updates": in_use / 1e9,
            **_profile(turn),
        }
    except Exception as error:
        return described | {"failed": f"{type(error).__name__}: {str(error)[:300]}"}


def _profile(turn: Callable[[], object]) -> dict[str, Any]:
    """Share of the time in which the device is idle, and the operations that take most of the rest.

    Read from the profiler's record of the device; empty if there is none.
    """
    with tempfile.TemporaryDirectory() as folder:
        try:
            with jax.profiler.trace(folder):
                began = time.perf_counter()
                for _ in range(PROFILED):
                    turn()
                taken = time.perf_counter() - began
            (file,) = Path(folder).rglob("*.xplane.pb")
            planes = list(jax.profiler.ProfileData.from_file(str(file)).planes)
        except Exception as error:  # a missing profiler must not affect the other results
            return {"profiler": f"{type(error).__name__}: {str(error)[:200]}"}
    spans, operations = [], Counter[str]()
    for plane in planes:
        if not plane.name.startswith("/device:GPU"):
            continue
        for line in plane.lines:
            if not line.name.startswith("Stream"):
                continue
            for event in line.events:
                spans.append((event.start_ns, event.start_ns + event.duration_ns))
                operations[event.name] += event.duration_ns
    if not spans:
        return {}
    busy, end = 0.0, 0.0
    for first, last in sorted(spans):
        busy += max(0.0, last - max(first, end))
        end = max(end, last)
    total = sum(operations.values())
    return {
        "device_idle": 1 - busy / (taken * 1e9),
        "launches_an_update": len(spans) / PROFILED,
        "operations": {name[:40]: round(ns / total, 3) for name, ns in operations.most_common(SHOWN)},
    }
