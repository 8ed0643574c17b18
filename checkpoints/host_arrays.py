"""Any pytree as a flat dictionary of host arrays, and back.

A path such as `['theta']['w']` names a leaf. Sharded arrays become one array of the global shape,
typed PRNG keys become their key data, and scalars become arrays of shape (), so the stored arrays
depend neither on the number of devices nor on JAX.
"""

from __future__ import annotations

import hashlib
from typing import Any

import jax
import numpy as np

from learned_opt._src.errors import UserError

PyTree = Any


def _is_typed_key(leaf: Any) -> bool:
    return hasattr(leaf, "dtype") and jax.dtypes.issubdtype(leaf.dtype, jax.dtypes.prng_key)


def _flatten(tree: PyTree) -> dict[str, Any]:
    leaves, _ = jax.tree_util.tree_flatten_with_path(tree)
    return {jax.tree_util.keystr(path): leaf for path, leaf in leaves}


def copy_to_host(state: PyTree) -> dict[str, np.ndarray]:
    """Copies every leaf of `state` into new host memory.

    Args:
      state: a pytree of JAX or NumPy arrays, typed keys and scalars.

    Returns:
      {path: array}, of the global shapes; no memory is shared with `state`, whose buffers may be
      donated from now on.

    Raises:
      UserError: a leaf is not numeric (a string, an object) and so could not be restored.
    """
    leaves = {
        path: jax.random.key_data(leaf) if _is_typed_key(leaf) else leaf
        for path, leaf in _flatten(state).items()
    }
    # device_get starts all transfers before it waits for the first; on a CPU it returns views.
    arrays = {path: np.array(leaf, order="C") for path, leaf in jax.device_get(leaves).items()}
    for path, array in arrays.items():
        if array.dtype.kind in "OSUMm":
            raise UserError(
                f"The state at {path or 'the root'} is a {type(leaves[path]).__name__}, which a "
                "checkpoint cannot hold: use arrays of numbers, and give text as metadata."
            )
    return arrays


def describe_leaf(leaf: Any) -> dict[str, Any]:
    """The dtype and shape of `leaf` (or of a `jax.ShapeDtypeStruct`) on the host, as JSON."""
    if _is_typed_key(leaf):
        leaf = jax.eval_shape(jax.random.key_data, leaf)
    if not hasattr(leaf, "dtype"):
        leaf = np.asarray(leaf)
    return {"dtype": leaf.dtype.name, "shape": list(leaf.shape)}


def describe(tree: PyTree) -> dict[str, dict[str, Any]]:
    """{path: description} of the leaves of `tree`."""
    return {path: describe_leaf(leaf) for path, leaf in _flatten(tree).items()}


def digest(array: np.ndarray) -> str:
    """SHA-256 over the dtype, the shape and the bytes of one C-contiguous array."""
    sha = hashlib.sha256(f"{array.dtype.name} {array.shape} ".encode())
    sha.update(array.reshape(-1).view(np.uint8).data)
    return sha.hexdigest()


def first_difference(expected: dict[str, dict[str, Any]], saved: dict[str, dict[str, Any]]) -> str | None:
    """Describes the first array that was not saved as expected; None if there is none."""
    for path in sorted(expected):
        name = path or "the root"
        if path not in saved:
            return f"{name} is missing from the checkpoint"
        here, there = (f"{x['dtype']}{x['shape']}" for x in (expected[path], saved[path]))
        if here != there:
            return f"{name} is {there} in the checkpoint but {here} is expected"
    return None


def unflatten(like: PyTree, arrays: dict[str, np.ndarray]) -> PyTree:
    """The inverse of `copy_to_host`: `arrays` in the structure of `like`.

    Leaves are NumPy arrays; where `like` has a typed key, the key data is wrapped as that type.
    """

    def leaf(path: str, like_leaf: Any) -> Any:
        if _is_typed_key(like_leaf):
            return jax.random.wrap_key_data(jax.numpy.asarray(arrays[path]), dtype=like_leaf.dtype)
        return arrays[path]

    leaves = [leaf(path, like_leaf) for path, like_leaf in _flatten(like).items()]
    return jax.tree.unflatten(jax.tree.structure(like), leaves)
