"""Meta-training of a part of theta, while the rest stays as it is."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import jax
from flax.traverse_util import flatten_dict, unflatten_dict

from learned_opt import LearnedOptimizer, UserError
from meta_train.estimators.base import Theta


def part_of(theta: Theta, names: Sequence[str]) -> Theta:
    """The parts of theta with some names, such as ``direction`` or ``step/Dense_1``.

    Raises:
      UserError: a name is not that of a part.
    """
    flat = flatten_dict(theta, sep="/")
    found: dict[str, Any] = {}
    for name in names:
        own = {path: x for path, x in flat.items() if f"{path}/".startswith(f"{name}/")}
        if not own:
            raise UserError(
                f"--learn names '{name}', but the weights of this optimizer are {', '.join(sorted(flat))}; "
                "give one of them, the beginning of some up to a slash, or no name to learn all"
            )
        found |= own
    return unflatten_dict(found, sep="/")


def completed(theta: Theta, part: Theta) -> Theta:
    """Theta with some of its parts replaced."""
    return unflatten_dict(flatten_dict(theta, sep="/") | flatten_dict(part, sep="/"), sep="/")


def learning_part(optimizer: LearnedOptimizer, theta: Theta, names: Sequence[str]) -> LearnedOptimizer:
    """An optimizer whose theta consists of some parts of another's; the other parts are fixed.

    A perturbation then has fewer entries, so a meta-gradient from perturbations has less noise: its variance
    is proportional to the number of weights.

    Args:
      optimizer: the optimizer with all of its theta.
      theta: its weights: the fixed parts, and the initial value of the others.
      names: the parts that are learned.

    Raises:
      UserError: a name is not that of a part.
    """
    initial = part_of(theta, names)

    def update(part: Theta, *arguments: Any, **options: Any) -> Any:
        return optimizer.update(completed(theta, part), *arguments, **options)

    def init_theta(key: jax.Array, blocks: int) -> Theta:
        return initial

    return optimizer._replace(init_theta=init_theta, update=update, unit_rate=None)
