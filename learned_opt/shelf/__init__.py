"""Optimizers that were meta-trained in this repository and travel inside the package.

Beside each optimizer file lies the log of its meta-training and the configuration that `meta-train --config`
repeats it with. `docs/pretrained.md` tells how they were made and what they are good for.
"""

from __future__ import annotations

from pathlib import Path
from typing import overload

import optax

from learned_opt.artifact import FILE_NAME, load
from learned_opt.errors import UserError, choices

SHELF = Path(__file__).parent


@overload
def pretrained() -> list[str]: ...


@overload
def pretrained(
    name: str, learning_rate: optax.ScalarOrSchedule | None = None
) -> optax.GradientTransformationExtraArgs: ...


def pretrained(
    name: str | None = None, learning_rate: optax.ScalarOrSchedule | None = None
) -> list[str] | optax.GradientTransformationExtraArgs:
    """A pretrained optimizer, to be used where ``optax.adam(1e-3)`` stood; without a name, their names.

    Args:
      name: one of ``pretrained()``.
      learning_rate: as for ``learned_opt.load``.

    Returns:
      An optax transformation, as from ``learned_opt.load``; or the list of names.

    Raises:
      UserError: there is none of this name, or it takes no learning rate.

    Example::

        tx = learned_opt.pretrained("NAME")
        state = tx.init(params)
    """
    if name is None:
        return sorted(path.parent.name for path in SHELF.glob(f"*/{FILE_NAME}"))
    return load(pretrained_path(name), learning_rate)


def pretrained_path(name: str) -> Path:
    """The file of a pretrained optimizer, for ``learned_opt.read``.

    Raises:
      UserError: there is none of this name.
    """
    names = pretrained()
    if name not in names:
        raise UserError(f"there is no pretrained optimizer '{name}'; {choices(name, names)}")
    return SHELF / name / FILE_NAME


def find_optimizer(name: str) -> Path | None:
    """The file that a user means by a path, the folder of a run, or the name of a pretrained optimizer.

    None where there is no such path, and no pretrained optimizer of this name.
    """
    path = Path(name)
    if path.exists():
        return path / FILE_NAME if path.is_dir() else path
    return pretrained_path(name) if name in pretrained() else None
