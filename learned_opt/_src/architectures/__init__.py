"""The architectures by name, as ``--optimizer NAME`` and optimizer files refer to them.

A user-defined architecture is called ``module:name``. Its module is imported only if the user names it, never
because a file does.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

from learned_opt._src.architectures.adam import adam
from learned_opt._src.architectures.celo2_style import celo2_style
from learned_opt._src.architectures.metz2019 import metz2019
from learned_opt._src.architectures.mlp import mlp
from learned_opt._src.architectures.muon_mlp import muon_mlp
from learned_opt._src.architectures.nadam_mlp import nadam_mlp
from learned_opt._src.architectures.relative_mlp import relative_mlp
from learned_opt._src.architectures.sgdm import sgdm
from learned_opt._src.architectures.small_fc import small_fc
from learned_opt._src.errors import UserError, choices
from learned_opt._src.learned_optimizer import LearnedOptimizer
from learned_opt._src.modules import find_in_module

# To add an architecture, write it in one file and name it here.
ARCHITECTURES: dict[str, Callable[[], LearnedOptimizer]] = {
    "mlp": mlp,
    "metz2019": metz2019,
    "small-fc": small_fc,
    "celo2-style": celo2_style,
    "relative-mlp": relative_mlp,
    "nadam-mlp": nadam_mlp,
    "muon-mlp": muon_mlp,
    "sgdm": sgdm,
    "adam": adam,
    "sgdm-per-block": partial(sgdm, per_block=True),
    "adam-per-block": partial(adam, per_block=True),
}


def get_architecture(name: str) -> LearnedOptimizer:
    """Return the architecture called `name`.

    Args:
      name: one of ``ARCHITECTURES``; or ``module:name`` for a function of your own that returns a
        ``LearnedOptimizer``. The module is imported and the function is added to ``ARCHITECTURES``, so that
        files of this architecture can be read.

    Raises:
      UserError: no architecture has that name, or the module cannot be imported.
    """
    if ":" in name and name not in ARCHITECTURES:
        make = find_in_module(name, "optimizer")
        try:
            made = make() if callable(make) else None
        except Exception as error:  # any exception is an error in the user's function
            raise UserError(f"optimizer '{name}' cannot be made ({error})") from error
        if not isinstance(made, LearnedOptimizer):
            raise UserError(f"optimizer '{name}' is not a function that returns a LearnedOptimizer")
        ARCHITECTURES[name] = make
    if name not in ARCHITECTURES:
        raise UserError(f"unknown optimizer '{name}'; {choices(name, ARCHITECTURES)}")
    return ARCHITECTURES[name]()
