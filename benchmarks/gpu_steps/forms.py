"""The forms of an update of the per-parameter networks on a GPU."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Mapping
from functools import partial
from unittest import mock

import jax

from learned_opt._src.architectures import momentum_kernel, per_tensor

KERNEL_OPTIMIZERS = ("mlp", "metz2019")


@contextlib.contextmanager
def form(kernel: bool, precision: str = "float32") -> Iterator[None]:
    """Functions traced in this context run as the kernel, or unfused with products of this precision.

    Without a GPU, the kernel is interpreted.
    """
    with contextlib.ExitStack() as stack:

        def usable(kernels: Mapping[str, object], *_: object) -> dict[str, object]:
            return {"cuda": kernels["cuda"]} if kernel and kernels else {}

        stack.enter_context(mock.patch.object(per_tensor, "_usable", usable))
        stack.enter_context(jax.default_matmul_precision(precision))
        if kernel and jax.default_backend() != "gpu":
            interpreted = partial(momentum_kernel.momentum_kernel, interpret=True)
            stack.enter_context(mock.patch.object(momentum_kernel, "momentum_kernel", interpreted))
            stack.enter_context(mock.patch.object(jax.lax, "platform_dependent", _kernel_of))
        yield


def _kernel_of(*args: object, cuda: object, default: object) -> object:
    return cuda(*args)  # type: ignore[operator]
