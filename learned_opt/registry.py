"""The architectures by name: what ``--optimizer NAME`` and optimizer files refer to."""

from __future__ import annotations

from learned_opt.base import LearnedOptimizer
from learned_opt.errors import UserError
from learned_opt.mlp import mlp

# To add an architecture: write it in one file, and name it here.
OPTIMIZERS = {
    "mlp": mlp,
}


def get_optimizer(name: str) -> LearnedOptimizer:
    """The architecture called `name`.

    Raises:
      UserError: there is none of that name.
    """
    if name not in OPTIMIZERS:
        raise UserError(f"unknown optimizer '{name}'; there are: {', '.join(OPTIMIZERS)}")
    return OPTIMIZERS[name]()
