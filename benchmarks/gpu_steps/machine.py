"""The machine, and its limits in practice."""

from __future__ import annotations

import argparse
import platform
import shutil
import subprocess
import time
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import jaxlib

REPEATS = 20


def run(emit: Callable[..., None], arguments: argparse.Namespace) -> None:
    """Emit versions, device and memory, then the rates of a copy and of matrix products."""
    device = jax.devices()[0]
    emit(
        python=platform.python_version(),
        jax=jax.__version__,
        jaxlib=jaxlib.__version__,
        backend=jax.default_backend(),
        device=device.device_kind,
        memory=(device.memory_stats() or {}).get("bytes_limit"),
    )
    if shutil.which("nvidia-smi"):
        query = "--query-gpu=name,driver_version,memory.total,clocks.sm,clocks.max.sm,power.limit"
        command = ["nvidia-smi", query, "--format=csv,noheader"]
        emit(nvidia_smi=subprocess.run(command, capture_output=True, text=True).stdout.strip())

    width, floats = (256, 2**16) if arguments.miniature else (8192, 2**29)
    x = jax.random.normal(jax.random.key(0), (floats,))
    seconds = _seconds(jax.jit(lambda x: 1.0001 * x), x)
    emit(copy_gigabytes_a_second=8 * floats / seconds / 1e9)
    a = jax.random.normal(jax.random.key(1), (width, width))
    for precision in ("float32", "TF32_TF32_F32_X3", "tensorfloat32", "bfloat16"):
        if jax.default_backend() == "cpu" and precision == "TF32_TF32_F32_X3":
            continue  # not available on a CPU
        seconds = _seconds(jax.jit(lambda a, p=precision: jnp.matmul(a, a, precision=p)), a)
        emit(product=precision, teraflops=2 * width**3 / seconds / 1e12)


def _seconds(f: Callable[[jax.Array], jax.Array], x: Any) -> float:
    """Time of a call, averaged over several that are queued one after another."""
    jax.block_until_ready(f(x))
    began = time.perf_counter()
    for _ in range(REPEATS):
        y = f(x)
    jax.block_until_ready(y)
    return (time.perf_counter() - began) / REPEATS
