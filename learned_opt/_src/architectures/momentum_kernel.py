"""One step of a ``momentum_network`` as a single kernel for NVIDIA GPUs, in Pallas (its Mosaic GPU backend).

Written to memory, the hidden layers alone would move eight times the bytes that the step has to move. Here
one program computes the features, the layers, the step and the new momenta of a block of parameters, and its
layers stay in registers: with the network of ``mlp`` a parameter costs 60 bytes and 2,700 operations. One
pass over the tensor comes first, for the mean squares that the features are divided by (32 bytes).

The layers are spelled out as multiply-adds of a weight and a row of parameters: each thread computes the
whole network for a few parameters, with weights in the shared memory of its block.

Each large tensor has its own call; the small ones are packed and share one. Under ``vmap`` the particles,
each with its own theta, are one more dimension of the grid.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.experimental import pallas as pl
from jax.experimental.pallas import mosaic_gpu as plgpu

from learned_opt._src.architectures import features as ft
from learned_opt._src.architectures.per_parameter import layers, small_step
from learned_opt._src.learned_optimizer import Theta

THREADS = 128  # per program
# Parameters per program for packed tensors, which are padded to a multiple of it.
SMALL_BLOCK = 2 * THREADS
# Tensors with fewer entries are packed: launching a kernel takes about as long as this many parameters.
SMALL = 2**16


def momentum_kernel(
    theta: Theta,
    gradients: Sequence[jax.Array],
    params: Sequence[jax.Array],
    momenta: Sequence[jax.Array],
    constants: jax.Array,
    *,
    features: Sequence[ft.Feature],
    decays: Sequence[float],
    epsilon: float,
    interpret: bool = False,
) -> list[tuple[jax.Array, jax.Array]]:
    """Steps and next momenta of all tensors of a network.

    Args:
      theta: weights of the per-parameter network.
      gradients, params: float32 tensors.
      momenta: ``[k, *shape]`` for each tensor.
      constants: ``[c]``, network inputs that all parameters share.
      features: the network's features of a parameter, as in ``momentum_network``.
      decays: decays of the k momenta.
      epsilon: added to the mean square of a feature.
      interpret: run without a GPU, as plain JAX operations; for tests.

    Returns:
      For each tensor its step, to be added, and its next momenta.
    """
    flat = [
        (g.reshape(-1), p.reshape(-1), m.reshape(m.shape[0], -1))
        for g, p, m in zip(gradients, params, momenta, strict=True)
    ]
    (kernel, bias), *deeper = layers(theta, constants)
    bias, deeper = bias[:, 0], [(weights, own[:, 0]) for weights, own in deeper]
    large = [[i] for i, (g, _, _) in enumerate(flat) if g.size >= SMALL]
    small = [i for i, (g, _, _) in enumerate(flat) if 0 < g.size < SMALL]

    outcomes = [(g, m) for g, _, m in flat]  # right for tensors without entries
    for group in [*large, small] if small else large:
        block_size = SMALL_BLOCK if group is small else _large_block(1 + len(deeper))
        blocks = [-(-flat[i][0].size // block_size) for i in group]
        # If a large tensor does not fill its last block, that block starts earlier and overlaps the previous.
        each = [[_padded(x, block_size) for x in flat[i]] if group is small else flat[i] for i in group]
        g, p, m = (jnp.concatenate(parts, axis=-1) for parts in zip(*each, strict=True))
        owner = np.repeat(np.arange(len(group), dtype=np.int32), blocks)
        firsts = jnp.stack([_first_layer(kernel, *flat[i], features, decays, epsilon) for i in group])
        shared = [bias, *(x for layer in deeper for x in layer)]
        step, m = _call(
            g,
            p,
            m,
            jnp.asarray(owner),
            _padded(firsts.reshape(len(group), -1), THREADS),  # all threads copy the same number of weights
            _padded(jnp.concatenate([x.reshape(-1) for x in shared]), THREADS),
            decays=tuple(decays),
            widths=tuple(x.shape[0] for x in shared[::2]),
            block_size=block_size,
            interpret=interpret,
        )
        for i, end, count in zip(group, np.cumsum(blocks), blocks, strict=True):
            start, size = (end - count) * block_size, flat[i][0].size
            outcomes[i] = (step[start : start + size], m[:, start : start + size])
    return [
        (step.reshape(g.shape), m.reshape(m.shape[0], *g.shape))
        for (step, m), g in zip(outcomes, gradients, strict=True)
    ]


def _first_layer(
    kernel: jax.Array,
    gradient: jax.Array,
    param: jax.Array,
    momenta: jax.Array,
    features: Sequence[ft.Feature],
    decays: Sequence[float],
    epsilon: float,
) -> jax.Array:
    """First-layer weights for the rows that the kernel reads, ``[hidden, 2 + k]``.

    They include normalisation and factors. The rows are gradient, parameter and k new momenta, and every
    feature is a multiple of one of them.
    """
    gradient, param = ft.finite(gradient), ft.finite(param)
    new = ft.averaged(momenta, gradient, decays)
    squares = jnp.concatenate([jnp.mean(jnp.square(x), axis=-1) for x in (gradient[None], param[None], new)])
    sources, factors = ft.rows_and_factors(features, len(decays))
    scales = factors * jax.lax.rsqrt(epsilon + factors**2 * squares[sources])
    return jnp.zeros((kernel.shape[0], squares.shape[0])).at[:, sources].add(kernel * scales[None])


def _large_block(layers: int) -> int:
    """Parameters per program for a large tensor, for a network with the given number of layers.

    A thread uses each weight that it reads for all of its parameters, and keeps for each of them the units of
    all hidden layers but the last. With two hidden layers of 32 it computes four parameters; six are nearly
    twice as slow.
    """
    return THREADS * (4 if layers > 2 else 6)


def _padded(x: jax.Array, multiple: int) -> jax.Array:
    """Pad the last axis with zeros to a multiple of this length."""
    return jnp.pad(x, [(0, 0)] * (x.ndim - 1) + [(0, -x.shape[-1] % multiple)])


def _block(
    number: jax.Array,
    gradient_ref: Any,
    param_ref: Any,
    momenta_ref: Any,
    owner_ref: Any,
    firsts_ref: Any,
    shared_ref: Any,
    step_ref: Any,
    new_momenta_ref: Any,
    weights_ref: Any,
    *,
    decays: Sequence[float],
    widths: Sequence[int],
    block_size: int,
) -> None:
    """One block of parameters: read the rows, compute the layers, write step and momenta.

    `owner_ref` holds for each block the number of its tensor, which selects the first layer. `weights_ref` is
    scratch memory of the block for all weights.
    """
    first = firsts_ref.shape[1]
    weights_ref[pl.ds(0, first)] = firsts_ref[owner_ref[number], pl.ds(0, first)]
    weights_ref[pl.ds(first, shared_ref.shape[0])] = shared_ref[pl.ds(0, shared_ref.shape[0])]

    block = pl.ds(jnp.minimum(number * block_size, gradient_ref.shape[0] - block_size), block_size)
    found = gradient_ref[block]
    gradient = ft.finite(found)
    rows = [gradient, ft.finite(param_ref[block])]
    for k, decay in enumerate(np.asarray(decays, np.float32)):
        momentum = decay * momenta_ref[k, block] + (1 - decay) * gradient
        new_momenta_ref[k, block] = momentum
        rows.append(momentum)

    def unit(bias: int, weights: int, inputs: Sequence[jax.Array]) -> jax.Array:
        """One unit, given the positions of its bias and of its first weight."""
        total = jnp.broadcast_to(weights_ref[bias], (block_size,))
        for i, x in enumerate(inputs):
            total = total + weights_ref[weights + i] * x
        return total

    def layer(bias: int, weights: int, width: int, inputs: Sequence[jax.Array]) -> Iterator[jax.Array]:
        """The units of a layer, one at a time, because those of the last hidden layer are not kept."""
        return (unit(bias + h, weights + h * len(inputs), inputs) for h in range(width))

    hidden, *later, last = widths
    units, place = layer(first, 0, hidden, rows), first + hidden
    for width in later:
        inputs = [jnp.maximum(x, 0) for x in units]
        weights, bias = place, place + width * len(inputs)
        units, place = layer(bias, weights, width, inputs), bias + width
    inner = widths[-2]
    outputs = [jnp.broadcast_to(weights_ref[place + last * inner + o], (block_size,)) for o in range(last)]
    for h, x in enumerate(units):
        x = jnp.maximum(x, 0)
        outputs = [total + weights_ref[place + o * inner + h] * x for o, total in enumerate(outputs)]
    step_ref[block] = ft.allowed(small_step(outputs), found, rows[-1])


# Compiled separately, so that tensors of equal shape share one program.
@partial(jax.jit, static_argnames=("decays", "widths", "block_size", "interpret"))
def _call(
    gradient: jax.Array,
    param: jax.Array,
    momenta: jax.Array,
    owner: jax.Array,
    firsts: jax.Array,
    shared: jax.Array,
    *,
    decays: Sequence[float],
    widths: Sequence[int],
    block_size: int,
    interpret: bool,
) -> list[jax.Array]:
    """Run the kernel over flat tensors; returns step and new momenta."""
    body: Callable[..., None] = partial(_block, decays=decays, widths=widths, block_size=block_size)
    arguments = (gradient, param, momenta, owner, firsts, shared)
    places = firsts.shape[-1] + shared.shape[-1]
    if interpret:
        return _interpreted(body, len(owner), (gradient, momenta), arguments, places)

    def program(*refs: Any, weights_ref: Any) -> None:
        body(jax.lax.axis_index("block"), *refs, weights_ref)

    return plgpu.kernel(
        program,
        out_type=[jax.ShapeDtypeStruct(x.shape, x.dtype) for x in (gradient, momenta)],
        scratch_types={"weights_ref": plgpu.SMEM((places,), jnp.float32)},
        grid=owner.shape,
        grid_names=("block",),
        compiler_params=plgpu.CompilerParams(lowering_semantics=plgpu.LoweringSemantics.Lane),
        kernel_name="momentum_network",
    )(*arguments)


def _interpreted(
    body: Callable[..., None],
    blocks: int,
    like: Sequence[jax.Array],
    arguments: Sequence[jax.Array],
    places: int,
) -> list[jax.Array]:
    """The kernel's computation as plain JAX operations on one block after another."""

    def step(number: jax.Array, results: list[jax.Array]) -> list[jax.Array]:
        refs = [_ArrayRef(x) for x in (*arguments, *results, jnp.full(places, jnp.nan))]
        body(number, *refs)
        return [ref.value for ref in refs[len(arguments) : -1]]

    # A result that no block writes stays NaN.
    return jax.lax.fori_loop(0, blocks, step, [jnp.full_like(x, jnp.nan) for x in like])


class _ArrayRef:
    """An array with the interface of a kernel's memory reference."""

    def __init__(self, value: jax.Array) -> None:
        self.value = value

    @property
    def shape(self) -> tuple[int, ...]:
        return self.value.shape

    def __getitem__(self, index: Any) -> jax.Array:
        return self.value[self._places(index)]

    def __setitem__(self, index: Any, new: jax.Array) -> None:
        self.value = self.value.at[self._places(index)].set(new)

    def _places(self, index: Any) -> tuple[Any, ...]:
        each = index if isinstance(index, tuple) else (index,)
        return tuple(i.start + jnp.arange(i.size) if isinstance(i, pl.Slice) else i for i in each)
