"""Learned optimizers: what one is, how it is used from optax code, and the file it travels in.

tx = learned_opt.load("optimizer.safetensors")    # where optax.adam(1e-3) stood
"""

from learned_opt._src.artifact import Artifact, describe, load, read, save
from learned_opt._src.base import LearnedOptimizer, Params, State, Theta
from learned_opt._src.errors import LearnedOptError, UserError
from learned_opt._src.registry import ARCHITECTURES, get_architecture
from learned_opt._src.shelf import pretrained, pretrained_names, pretrained_path
from learned_opt._src.state import LearnedState
from learned_opt._src.transform import as_optax, scale_by_learned

__version__ = "0.1.0"

__all__ = [
    "ARCHITECTURES",
    "Artifact",
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
]
