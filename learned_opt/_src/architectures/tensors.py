"""Several tensors as one array, on which a rule is computed whatever the shapes of the tensors.

A rule is made of functions of single entries and of means over each tensor. There are two ways to compute
them:

* ``Packed``: the tensors are laid out one after another in strips of 64 entries, each strip from one tensor.
  Functions of entries are computed in blocks of 16 strips, whatever tensors they belong to. The program
  therefore does not depend on the shapes, and the data of a block stays in cache.
* ``Whole``: one tensor in its own shape, for a tensor that may be sharded over devices; flattening would
  gather it.

Arrays of entries are ``[k, ...]``. Arrays with one column per tensor are ``[k, T]``, for T tensors.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any, NamedTuple, Protocol

import jax
import jax.numpy as jnp
import numpy as np

# Entries per strip. Tensors are padded to whole strips: a bias of ten entries costs as much as one of 64.
STRIP = 64
# Entries per block: both hidden layers of ``mlp`` (2 x 32 x 1024 floats) fit in the L2 cache of one core.
BLOCK_SIZE = 1024
# A GPU is fastest with all entries at once; only its memory sets a limit.
GPU_BLOCK_SIZE = 2**22

Shape = tuple[int, ...]
# Maps values per tensor, [k, T] or [k, 1] for all, to an array that broadcasts with the entries.
Each = Callable[[jax.Array], jax.Array]


class Entries(NamedTuple):
    """The entries of some tensors."""

    gradient: jax.Array  # [1, ...]
    param: jax.Array  # [1, ...]
    accumulated: Any  # NamedTuple of arrays [k, ...]; those of other shapes are None
    shaped: Any = None  # the rule's arrays from rows and columns, [k, ...]


class Tensors(Protocol):
    """Some tensors, and ways to compute functions of their entries."""

    shapes: Sequence[Shape]
    is_vector: jax.Array  # whether each has fewer than two dimensions, [1, T]
    entries: Entries
    numbers: jax.Array | None  # the accumulators that are numbers of a whole tensor, before this step, [k, T]

    def each(self, numbers: jax.Array) -> jax.Array:
        """Values per tensor, ``[k, T]`` or ``[k, 1]`` for all, in a shape that broadcasts with entries."""
        ...

    def map(self, function: Callable[[Entries, Each], jax.Array]) -> jax.Array:
        """``function(entries, each)`` for all entries: ``[...]``."""
        ...

    def mean(self, function: Callable[[Entries, Each], jax.Array]) -> jax.Array:
        """Means over each tensor, ``[k, T]``, of ``function(entries, each)``, which is ``[k, ...]``."""
        ...

    def mean_square(self, x: jax.Array) -> jax.Array:
        """Mean squares over each tensor, ``[1, T]``, of a result of ``map``."""
        ...


class Whole:
    """One tensor in its own shape."""

    def __init__(self, entries: Entries, numbers: jax.Array | None = None) -> None:
        self.entries, self.numbers = entries, numbers
        self.shapes: Sequence[Shape] = [entries.param.shape[1:]]
        self.is_vector = _are_vectors(self.shapes)

    def each(self, numbers: jax.Array) -> jax.Array:
        """See ``Tensors``."""
        return numbers.reshape(-1, *[1] * len(self.shapes[0]))

    def map(self, function: Callable[[Entries, Each], jax.Array]) -> jax.Array:
        """See ``Tensors``."""
        return function(self.entries, self.each)

    def mean(self, function: Callable[[Entries, Each], jax.Array]) -> jax.Array:
        """See ``Tensors``."""
        x = self.map(function)
        return jnp.mean(x, axis=tuple(range(1, x.ndim)))[:, None]

    def mean_square(self, x: jax.Array) -> jax.Array:
        """See ``Tensors``."""
        return jnp.mean(jnp.square(x))[None, None]


class Packed:
    """Tensors one after another, in strips: arrays of entries are ``[k, strips, 64]``."""

    def __init__(self, shapes: Sequence[Shape], pieces: Entries, numbers: jax.Array | None = None) -> None:
        """Pack some tensors. A single tensor that fills whole blocks is not copied.

        Args:
          shapes: their shapes.
          pieces: the entries, with a list in place of each array. Its items are for one tensor each,
            ``[k, *shape]``, or for n neighbours of equal shape, ``[k, n, *shape]``.
          numbers: see ``Tensors``.
        """
        self.numbers = numbers
        self.shapes = shapes
        self.is_vector = _are_vectors(self.shapes)
        self._sizes = np.array([np.prod(shape, dtype=int) for shape in self.shapes])
        self._strips = -(-self._sizes // STRIP)
        self._starts = np.cumsum(self._strips) - self._strips
        self._blocks, self._block_strips = _evenly(self._strips.sum(), BLOCK_SIZE // STRIP)
        self._gpu_blocks = 1
        if jax.default_backend() == "gpu":
            self._gpu_blocks, share = _evenly(self._blocks, GPU_BLOCK_SIZE // BLOCK_SIZE)
            self._blocks = self._gpu_blocks * share
        owner = np.repeat(np.arange(len(shapes), dtype=np.int32), self._strips)
        owner = np.pad(owner, (0, self._blocks * self._block_strips - len(owner)))
        number = np.arange(len(owner)) - self._starts[owner]
        filled = np.clip(self._sizes[owner] - STRIP * number, 0, STRIP).astype(np.int32)
        self._is_full = np.all(filled == STRIP)
        self._owner, self._filled = jax.lax.optimization_barrier((owner, filled))
        self.entries = jax.tree.map(self._packed, pieces, is_leaf=lambda x: isinstance(x, list))

    def each(self, numbers: jax.Array) -> jax.Array:
        """See ``Tensors``."""
        return _at(self._owner, numbers)

    def map(self, function: Callable[[Entries, Each], jax.Array]) -> jax.Array:
        """See ``Tensors``."""
        return self._in_blocks(lambda start, *block: function(*block))

    def mean(self, function: Callable[[Entries, Each], jax.Array]) -> jax.Array:
        """See ``Tensors``."""
        return self._means(self._in_blocks(lambda start, *block: self._sums(start, function(*block))))

    def mean_square(self, x: jax.Array) -> jax.Array:
        """See ``Tensors``."""
        return self._means(self._sums(0, jnp.square(x)[None]))

    def unpacked(self, x: jax.Array) -> list[jax.Array]:
        """The entries ``[strips, 64]`` of each tensor, in its shape."""
        flat = x.reshape(-1)
        if len(self.shapes) == 1:
            return [flat[: self._sizes[0]].reshape(self.shapes[0])]
        # The barrier hides these numbers from the compiler, which would else make a program for each part.
        flat, starts = jax.lax.optimization_barrier((flat, tuple((STRIP * self._starts).astype(np.int32))))
        parts = [
            jax.lax.dynamic_slice(flat, (start,), (size,), allow_negative_indices=False)
            for start, size in zip(starts, self._sizes, strict=True)
        ]
        return [part.reshape(shape) for part, shape in zip(parts, self.shapes, strict=True)]

    def _packed(self, pieces: Sequence[jax.Array]) -> jax.Array:
        """Join arrays of one tensor ``[k, *shape]`` or several ``[k, n, *shape]``, padded with zeros."""
        k, tensor, padded = len(pieces[0]), 0, []
        for piece in pieces:
            size, padding = self._sizes[tensor], -self._sizes[tensor] % STRIP
            flat = piece.reshape(k, -1, size)
            tensor += flat.shape[1]
            if padding:
                flat = jnp.pad(flat, ((0, 0), (0, 0), (0, padding)))
            padded.append(flat.reshape(k, -1))
        if rest := STRIP * (len(self._owner) - self._strips.sum()):
            padded.append(jnp.zeros((k, rest), padded[0].dtype))
        whole = jnp.concatenate(padded, axis=1) if len(padded) > 1 else padded[0]
        return whole.reshape(k, -1, STRIP)

    def _sums(self, start: jax.Array | int, x: jax.Array) -> jax.Array:
        """Sums of ``[k, strips, 64]`` over each strip, without the padding: ``[strips, k]``."""
        if not self._is_full:
            filled = jax.lax.dynamic_slice_in_dim(self._filled, start, x.shape[1])
            x = jnp.where((np.arange(STRIP)[None] < filled[:, None])[None], x, 0)
        # On a CPU, XLA's fastest sum is a product with ones.
        return (x.reshape(-1, STRIP) @ jnp.ones(STRIP, x.dtype)).reshape(x.shape[:2]).T

    def _means(self, sums: jax.Array) -> jax.Array:
        """Means over each tensor ``[k, T]`` from the sums of all strips ``[strips, k]``."""
        # Neighbours with equally many strips share a sum. (On a GPU a scatter would add in no fixed order.)
        totals, start = [], 0
        for strips, equal in itertools.groupby(self._strips):
            end = start + strips * len(list(equal))
            totals.append(jnp.sum(sums[start:end].reshape(-1, strips, sums.shape[1]), axis=1))
            start = end
        total = jnp.concatenate(totals)
        return total.T / self._sizes.astype(total.dtype)[None]

    def _in_blocks(self, function: Callable[..., jax.Array]) -> jax.Array:
        """``function(start, entries, each)``, ``[strips, ...]``, for one block after another."""

        def in_blocks_of(strips: int) -> jax.Array:
            def block(start: jax.Array | int) -> jax.Array:
                each = partial(_at, jax.lax.dynamic_slice_in_dim(self._owner, start, strips))
                part = partial(jax.lax.dynamic_slice_in_dim, start_index=start, slice_size=strips, axis=1)
                return function(start, jax.tree.map(part, self.entries), each)

            count = len(self._owner) // strips
            if count == 1:
                return block(0)
            found = jax.lax.map(block, strips * jnp.arange(count))
            return found.reshape(-1, *found.shape[2:])

        if jax.default_backend() != "gpu":
            return in_blocks_of(self._block_strips)
        # The device that the program is compiled for decides.
        large = len(self._owner) // self._gpu_blocks
        sizes = {"cuda": large, "rocm": large, "default": self._block_strips}
        return jax.lax.platform_dependent(**{name: partial(in_blocks_of, n) for name, n in sizes.items()})


def unstacked(stacked: Any, count: int) -> list[Any]:
    """The parts ``x[0], x[1], ...`` of all arrays of a pytree."""
    # As in ``Packed.unpacked``, the barrier hides the indices from the compiler.
    places, stacked = jax.lax.optimization_barrier((tuple(np.arange(count, dtype=np.int32)), stacked))

    def part(x: jax.Array, place: jax.Array) -> jax.Array:
        return jax.lax.dynamic_index_in_dim(x, place, 0, keepdims=False)

    return [jax.tree.map(partial(part, place=place), stacked) for place in places]


def _are_vectors(shapes: Sequence[Shape]) -> jax.Array:
    return jnp.array([[len(shape) < 2 for shape in shapes]])


def _at(owner: jax.Array, numbers: jax.Array) -> jax.Array:
    """Values per tensor at some strips, ``[k, strips, 1]``."""
    return (numbers if numbers.shape[1] == 1 else numbers[:, owner])[:, :, None]


def _evenly(number: int, most: int) -> tuple[int, int]:
    """Number and size of equal groups of at most `most` items, without a remainder if possible."""
    for size in range(most, most // 2, -1):
        if number % size == 0:
            return number // size, size
    groups = -(-number // most)
    return groups, -(-number // groups)
