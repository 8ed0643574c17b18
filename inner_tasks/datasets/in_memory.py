"""Examples in memory: arrays, or whatever can be iterated over and gives arrays."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from learned_opt._src.errors import UserError

Examples = Any  # pytree of arrays [n, ...]


def in_memory(source: Any, name: str, *, batched: bool, max_examples: int) -> Examples:
    """The examples of a data set as host arrays.

    Args:
      source: an array, or a dictionary or tuple of arrays, each ``[n, ...]``, which is used whole; or an
        iterable of examples or batches, such as a data set of TFDS, Hugging Face or PyTorch, which is read
        once. An example is an array, a number, or a dictionary, tuple or list of them.
      name: its name in messages.
      batched: whether the iterable gives batches; otherwise it gives examples.
      max_examples: the number of examples after which reading of an iterable ends.

    Returns:
      The examples in the form of an example, but each array has a leading axis ``[n]``. The dtypes are those
      that JAX uses: by default float64 becomes float32, and int64 int32.

    Raises:
      UserError: there are no examples, they differ in their shapes, or they are not numbers.
    """
    if _is_arrays(source):
        return _checked(_arrays(source, name), name)
    if not isinstance(source, Iterable) and not hasattr(source, "__getitem__"):
        raise UserError(
            f"the {name} examples are of the type {type(source).__name__}; give an array, a dictionary or "
            "tuple of arrays, or an iterable of examples"
        )
    parts: list[Examples] = []
    count = 0
    for item in source:
        part = _arrays(item, name)
        part = _checked(part if batched else jax.tree.map(lambda x: x[None], part), name)
        parts.append(jax.tree.map(lambda x, left=max_examples - count: x[:left], part))
        count += len(jax.tree.leaves(parts[-1])[0])
        if count >= max_examples:
            break
    if not parts:
        raise UserError(f"there are no {name} examples; an iterator that was used before gives none")
    return _joined(parts, name)


def _is_arrays(source: Any) -> bool:
    if isinstance(source, dict | tuple):
        parts = source.values() if isinstance(source, dict) else source
        return bool(source) and all(map(_is_arrays, parts))
    return hasattr(source, "__array__")


def _is_list(value: Any) -> bool:
    return isinstance(value, list)


def _arrays(item: Any, name: str) -> Examples:
    """An example or a batch with NumPy arrays; a list of arrays becomes a tuple, any other list an array."""
    if _is_list(item) and all(hasattr(each, "__array__") for each in item):
        item = tuple(item)

    def array(path: Any, leaf: Any) -> np.ndarray:
        what = f"the {name} examples" + (f" have{jax.tree_util.keystr(path)}, which" if path else "")
        try:
            found = np.asarray(leaf)
        except (TypeError, ValueError) as error:
            raise UserError(f"{what} cannot be made an array: {error}") from None
        if not (jnp.issubdtype(found.dtype, np.number) or found.dtype == bool):
            raise UserError(
                f"{what} are not numbers but of the dtype {found.dtype}; leave them out, or make them numbers"
            )
        return _with_dtype_of_jax(found)

    return jax.tree_util.tree_map_with_path(array, item, is_leaf=_is_list)


def _with_dtype_of_jax(x: np.ndarray) -> np.ndarray:
    return x.astype(jax.dtypes.canonicalize_dtype(x.dtype), copy=False)


def _checked(examples: Examples, name: str) -> Examples:
    """The same examples, if all arrays have as many.

    Raises:
      UserError: they have not.
    """
    shapes = [np.shape(leaf) for leaf in jax.tree.leaves(examples)]
    if len({shape[:1] for shape in shapes}) != 1 or () in shapes or shapes[0][0] == 0:
        raise UserError(
            f"the arrays of the {name} examples have the shapes {_listed(shapes)}; the first axis of each "
            "must be the number of examples"
        )
    return examples


def _joined(parts: list[Examples], name: str) -> Examples:
    first, *others = [
        (jax.tree.structure(part), [x.shape[1:] for x in jax.tree.leaves(part)]) for part in parts
    ]
    for number, other in enumerate(others, 2):
        if other != first:
            raise UserError(
                f"number {number} of the {name} examples or batches has the shapes {_listed(other[1])}, and "
                f"the first has {_listed(first[1])}; all must have the same"
            )
    return jax.tree.map(lambda *x: _with_dtype_of_jax(np.concatenate(x)), *parts)


def _listed(shapes: list[tuple[int, ...]]) -> str:
    return ", ".join(map(str, shapes)) or "of no array"
