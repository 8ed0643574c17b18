"""The architectures by name: what ``--optimizer NAME`` and optimizer files refer to."""

from __future__ import annotations

from functools import partial

from learned_opt._src.adam import adam
from learned_opt._src.base import LearnedOptimizer
from learned_opt._src.celo2_style import celo2_style
from learned_opt._src.errors import UserError, choices
from learned_opt._src.metz2019 import metz2019
from learned_opt._src.mlp import mlp
from learned_opt._src.relative_mlp import relative_mlp
from learned_opt._src.sgdm import sgdm
from learned_opt._src.small_fc import small_fc

# To add an architecture: write it in one file, and name it here.
OPTIMIZERS = {
    "mlp": mlp,
    "metz2019": metz2019,
    "small-fc": small_fc,
    "celo2-style": celo2_style,
    "relative-mlp": relative_mlp,
    "sgdm": sgdm,
    "adam": adam,
    "sgdm-per-block": partial(sgdm, per_block=True),
    "adam-per-block": partial(adam, per_block=True),
}


def get_optimizer(name: str) -> LearnedOptimizer:
    """The architecture called `name`.

    Raises:
      UserError: there is none of that name.
    """
    if name not in OPTIMIZERS:
        raise UserError(f"unknown optimizer '{name}'; {choices(name, OPTIMIZERS)}")
    return OPTIMIZERS[name]()
