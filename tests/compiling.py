"""``jax.jit`` that compiles with less effort: compiling is most of what many tests cost."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

import jax


def compiled(effort: int) -> Callable[..., Any]:
    """``jax.jit`` with XLA's optimization level `effort`."""
    options: dict[str, int | bool] = {"xla_backend_optimization_level": effort}
    if jax.__version_info__ < (0, 11):  # the option is gone since
        options["xla_cpu_use_fusion_emitters"] = False
    return partial(jax.jit, compiler_options=options)


briefly = compiled(0)  # for programs that run for moments
often = compiled(1)  # for those that run for longer than a second
