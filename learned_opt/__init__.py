"""Learned optimizers: what one is, how it is used from optax code, and the file it travels in.

tx = learned_opt.load("optimizer.safetensors")    # where optax.adam(1e-3) stood
"""

from __future__ import annotations

from learned_opt.artifact import Artifact, describe, load, read, save
from learned_opt.base import LearnedOptimizer
from learned_opt.errors import LearnedOptError, UserError
from learned_opt.registry import OPTIMIZERS, get_optimizer
from learned_opt.shelf import pretrained, pretrained_names, pretrained_path
from learned_opt.transform import as_optax, scale_by_learned

__version__ = "0.1.0"

__all__ = [
    "OPTIMIZERS",
    "Artifact",
    "LearnedOptError",
    "LearnedOptimizer",
    "UserError",
    "as_optax",
    "describe",
    "get_optimizer",
    "load",
    "pretrained",
    "pretrained_names",
    "pretrained_path",
    "read",
    "save",
    "scale_by_learned",
]
