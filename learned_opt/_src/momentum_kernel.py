"""One step of a ``momentum_network`` as a single kernel for GPUs, in Pallas.

Written out, the hidden layers alone move eight times the bytes that the step has to move. Here the features,
the layers, the step and the new momenta of a block of parameters are one program, whose layers stay in
registers: a parameter costs 60 bytes and 2,700 operations with the network of ``mlp``. Before it comes one
pass over the tensor for the mean squares that its features are divided by (32 bytes).

Large tensors have a call each; the small ones are packed and share one. Under ``vmap`` particles, each with a
theta of its own, are one more dimension of the grid.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.experimental import pallas as pl
from jax.experimental.pallas import triton

from learned_opt._src import features as ft
from learned_opt._src.base import Theta
from learned_opt._src.per_parameter import layers, small_step

# Parameters of a program; one for each of its 128 threads.
BLOCK_SIZE = 128
# Tensors with fewer entries are packed: to launch a kernel takes about as long as this many parameters.
SMALL = 2**16


def momentum_kernel(
    theta: Theta,
    gradients: Sequence[jax.Array],
    params: Sequence[jax.Array],
    momenta: Sequence[jax.Array],
    constants: jax.Array,
    *,
    features: Sequence[tuple[str, float]],
    decays: Sequence[float],
    epsilon: float,
    interpret: bool = False,
) -> list[tuple[jax.Array, jax.Array]]:
    """Steps and next momenta of all tensors of a network.

    Args:
      theta: weights of the per-parameter network, whose hidden widths are powers of 2, 16 at least.
      gradients, params: float32 tensors.
      momenta: ``[k, *shape]`` of each.
      constants: ``[c]``, inputs of the network that all parameters share.
      features: what the network sees of a parameter, as ``momentum_network`` has it.
      decays: those of the k momenta.
      epsilon: added to the mean square of a feature.
      interpret: run it without a GPU, as plain JAX operations; for tests.

    Returns:
      For each tensor its step, to be added, and its momenta.
    """
    flat = [
        (g.reshape(-1), p.reshape(-1), m.reshape(m.shape[0], -1))
        for g, p, m in zip(gradients, params, momenta, strict=True)
    ]
    (kernel, bias), *deeper = layers(theta, constants)
    large = [[i] for i, (g, _, _) in enumerate(flat) if g.size >= SMALL]
    small = [i for i, (g, _, _) in enumerate(flat) if 0 < g.size < SMALL]

    outcomes = [(g, m) for g, _, m in flat]  # of tensors without entries
    for group in [*large, small] if small else large:
        blocks = [-(-flat[i][0].size // BLOCK_SIZE) for i in group]
        # A tensor alone need not fill its last block.
        each = [[_padded(x) for x in flat[i]] if len(group) > 1 else flat[i] for i in group]
        g, p, m = (jnp.concatenate(parts, axis=-1) for parts in zip(*each, strict=True))
        owner = np.repeat(np.arange(len(group), dtype=np.int32), blocks)
        firsts = jnp.stack([_first_layer(kernel, *flat[i], features, decays, epsilon) for i in group])
        weights = (firsts, bias, *(x for layer in deeper for x in layer))
        step, m = _call(g, p, m, owner, weights, decays=decays, interpret=interpret)
        for i, end, count in zip(group, np.cumsum(blocks), blocks, strict=True):
            start, size = (end - count) * BLOCK_SIZE, flat[i][0].size
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
    features: Sequence[tuple[str, float]],
    decays: Sequence[float],
    epsilon: float,
) -> jax.Array:
    """Weights for the rows that the kernel reads, normalisation and factors included: ``[2 + k, hidden]``.

    The rows are gradient, parameter and k new momenta, and every feature is a multiple of one of them.
    """
    gradient, param = ft.finite(gradient), ft.finite(param)
    new = ft.averaged(momenta, gradient, decays)
    squares = [jnp.mean(jnp.square(x), axis=-1) for x in (gradient[None], param[None], new)]
    squares = jnp.concatenate(squares)
    rows = {"gradient": [0], "param": [1], "momenta": list(range(2, 2 + len(decays)))}
    sources = np.concatenate([rows[source] for source, _ in features])
    factors = np.concatenate([np.full(len(rows[source]), factor, np.float32) for source, factor in features])
    scales = factors * jax.lax.rsqrt(epsilon + factors**2 * squares[sources])
    return jnp.zeros((squares.shape[0], kernel.shape[0])).at[sources].add((kernel * scales[None]).T)


def _padded(x: jax.Array) -> jax.Array:
    """Zeros behind it, up to whole blocks."""
    return jnp.pad(x, [(0, 0)] * (x.ndim - 1) + [(0, -x.shape[-1] % BLOCK_SIZE)])


def _call(
    gradient: jax.Array,
    param: jax.Array,
    momenta: jax.Array,
    owner: np.ndarray,
    weights: Sequence[jax.Array],
    *,
    decays: Sequence[float],
    interpret: bool,
) -> tuple[jax.Array, jax.Array]:
    """The kernel over flat tensors; `owner` says of each block of them which first layer is its own."""
    return pl.pallas_call(
        partial(_block, decays=decays),
        grid=owner.shape,
        out_shape=[jax.ShapeDtypeStruct(x.shape, x.dtype) for x in (gradient, momenta)],
        input_output_aliases={2: 1},
        interpret=interpret,
        compiler_params=triton.CompilerParams(num_warps=BLOCK_SIZE // 32),
        name="momentum_network",
    )(gradient, param, momenta, jnp.asarray(owner), *weights)


def _block(
    gradient_ref: Any,
    param_ref: Any,
    momenta_ref: Any,
    owner_ref: Any,
    first_ref: Any,
    bias_ref: Any,
    *refs: Any,
    decays: Sequence[float],
) -> None:
    """Of one block of parameters: rows in, layers, step and momenta out."""
    *deeper, step_ref, new_momenta_ref = refs
    number = pl.program_id(0)
    places = number * BLOCK_SIZE + jnp.arange(BLOCK_SIZE)
    inside = places < gradient_ref.shape[0]

    def read(ref: Any) -> jax.Array:
        return triton.load(ref, mask=inside, other=0.0)

    found = read(gradient_ref.at[places])
    gradient = ft.finite(found)
    rows = [gradient, ft.finite(read(param_ref.at[places]))]
    for k, decay in enumerate(np.float32(decays)):
        momentum = decay * read(momenta_ref.at[k, places]) + (1 - decay) * gradient
        triton.store(new_momenta_ref.at[k, places], momentum, mask=inside)
        rows.append(momentum)
    # Eight products of numbers, not one of matrices: the rows never lie side by side.
    owner = owner_ref[number]
    x = bias_ref[...][:, None]
    for i, row in enumerate(rows):
        x = x + first_ref[owner, i, :][:, None] * row[None, :]
    for weights_ref, hidden_bias_ref in zip(deeper[:-2:2], deeper[1:-2:2], strict=True):
        x = jnp.dot(weights_ref[...], jax.nn.relu(x)) + hidden_bias_ref[...][:, None]
    x, (weights_ref, last_bias_ref) = jax.nn.relu(x), deeper[-2:]
    outputs = [jnp.sum(weights_ref[i, :][:, None] * x, axis=0) + last_bias_ref[i] for i in range(2)]
    step = ft.allowed(small_step(outputs), found, rows[-1])
    triton.store(step_ref.at[places], step, mask=inside)
