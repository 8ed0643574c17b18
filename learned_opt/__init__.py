"""Learned optimizers: their definition, their use from optax code, and the file format.

A learned optimizer replaces ``optax.adam(1e-3)``::

    tx = learned_opt.load("optimizer.safetensors")
"""

from learned_opt._src.architectures import ARCHITECTURES, get_architecture
from learned_opt._src.architectures.state import LearnedState
from learned_opt._src.errors import LearnedOptError, UserError
from learned_opt._src.learned_optimizer import LearnedOptimizer, Params, State, Theta
from learned_opt._src.native import use_native_kernels
from learned_opt._src.optax_transformation import as_optax, scale_by_learned
from learned_opt._src.optimizer_file import Artifact, Description, describe, load, read, save
from learned_opt._src.pretrained import pretrained, pretrained_names, pretrained_path

__version__ = "0.2.0"

__all__ = [
    "ARCHITECTURES",
    "Artifact",
    "Description",
    "LearnedOptError",
    "LearnedOptimizer",
    "LearnedState",
    "Params",
    "State",
    "Theta",
    "UserError",
    "as_optax",
    "describe",
    "get_architecture",
    "load",
    "pretrained",
    "pretrained_names",
    "pretrained_path",
    "read",
    "save",
    "scale_by_learned",
    "use_native_kernels",
]
