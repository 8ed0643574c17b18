"""Optimizers that were meta-trained in this repository and come with the package.

Next to each optimizer file are the log of its meta-training and the configuration with which
`meta-train --config` repeats it. `docs/pretrained.md` describes how they were made and when to use them.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import jax
import optax

from learned_opt._src.errors import UserError, choices
from learned_opt._src.optimizer_file import FILE_NAME, load

FOLDER = Path(__file__).parents[1] / "pretrained_optimizers"


def pretrained_names() -> list[str]:
    """Names of the optimizers that come with the package."""
    return sorted(path.parent.name for path in FOLDER.glob(f"*/{FILE_NAME}"))


def pretrained(
    name: str,
    learning_rate: optax.ScalarOrSchedule | None = None,
    *,
    scale: optax.ScalarOrSchedule = 1.0,
    weight_decay: jax.typing.ArrayLike = 0.0,
    mask: Any = None,
    layer_axes: Any = None,
    num_steps: int | None = None,
) -> optax.GradientTransformationExtraArgs:
    """Load a pretrained optimizer, to be used in place of ``optax.adam(1e-3)``.

    Args:
      name: one of ``pretrained_names()``.
      learning_rate, scale, weight_decay, mask, layer_axes, num_steps: as for ``learned_opt.as_optax``.

    Returns:
      An optax transformation, as from ``learned_opt.load``.

    Raises:
      UserError: there is none of this name, or a learning rate is given for an optimizer that takes none.

    Example::

        tx = learned_opt.pretrained("relative-mlp-small-tasks")
        state = tx.init(params)
    """
    return load(
        pretrained_path(name),
        learning_rate,
        scale=scale,
        weight_decay=weight_decay,
        mask=mask,
        layer_axes=layer_axes,
        num_steps=num_steps,
    )


def pretrained_path(name: str) -> Path:
    """The file of a pretrained optimizer, for ``learned_opt.read``.

    Raises:
      UserError: there is none of this name.
    """
    names = pretrained_names()
    if name not in names:
        raise UserError(f"there is no pretrained optimizer '{name}'; {choices(name, names)}")
    return FOLDER / name / FILE_NAME


def find_optimizer(name: str) -> Path | None:
    """The optimizer file for a path, the folder of a run, or the name of a pretrained optimizer.

    None if there is neither such a path nor a pretrained optimizer of this name.
    """
    path = Path(name)
    if path.exists():
        return path / FILE_NAME if path.is_dir() else path
    return pretrained_path(name) if name in pretrained_names() else None
