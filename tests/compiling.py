"""``jax.jit`` for programs that take longer to run than to compile."""

from __future__ import annotations

from functools import partial

import jax

often = partial(jax.jit, compiler_options={"xla_backend_optimization_level": 1})
