"""Time of an update of `mlp` in JAX and as a native kernel, in turns on one core.

    taskset -c 0 python benchmarks/native.py

The kernel, `native.cpp`, is an experiment and not part of the package. It needs `g++` and a processor with
AVX-512.
"""

from __future__ import annotations

import os

# Before JAX starts.
os.environ["XLA_FLAGS"] = "--xla_cpu_multi_thread_eigen=false"

import statistics
import subprocess
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
from common import ratios, spread

import learned_opt
from meta_train.report.costs import repeated_updates

SHAPES = ((390, 64), (625, 640))
WORK = 2_000_000  # parameters times updates in a turn
TURNS, ROUNDS = 15, 7


def main() -> None:
    """Print a line for each size."""
    optimizer = learned_opt.get_architecture("mlp")
    theta = optimizer.init_theta(jax.random.key(0), 1)
    run = jax.jit(
        lambda params, steps: repeated_updates(optimizer, theta, params, optimizer.init(params), steps)
    )
    with tempfile.TemporaryDirectory() as folder:
        kernel = Path(folder) / "native"
        source = Path(__file__).with_suffix(".cpp")
        subprocess.run(["g++", "-O3", "-march=native", "-ffast-math", source, "-o", kernel], check=True)
        for shape in SHAPES:
            params = 0.3 * jax.random.normal(jax.random.key(1), shape)
            jax_times, kernel_times = [], []
            for _ in range(ROUNDS):
                jax_times.append(_nanoseconds(run, params))
                command = [kernel, str(params.size)]
                printed = subprocess.run(command, check=True, capture_output=True, text=True).stdout
                kernel_times.append(float(printed))
            ratio = statistics.median(ratios(jax_times, kernel_times))
            print(
                f"{params.size:,} parameters, ns per parameter: JAX {spread(jax_times, '.1f')}, "
                f"kernel {spread(kernel_times, '.1f')}; ratio {ratio:.2f}"
            )


def _nanoseconds(run: Callable[..., Any], params: jax.Array) -> float:
    """The fastest of several turns, as the kernel's program reports it."""
    steps = jnp.int32(WORK // params.size)
    jax.block_until_ready(run(params, steps))
    seconds = []
    for _ in range(TURNS):
        began = time.perf_counter()
        jax.block_until_ready(run(params, steps))
        seconds.append(time.perf_counter() - began)
    return min(seconds) / int(steps) / params.size * 1e9


if __name__ == "__main__":
    main()
