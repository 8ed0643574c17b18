"""One step of a ``momentum_network`` as a native kernel for CPUs (``momentum_native.cpp``).

XLA makes many passes over the hidden layers, for products, biases and activations. The kernel goes through
each tensor once for the mean squares and once for everything else.
"""

from __future__ import annotations

from collections.abc import Sequence

import jax
import jax.numpy as jnp
import numpy as np

from learned_opt._src.architectures import features as ft
from learned_opt._src.architectures.per_parameter import layers
from learned_opt._src.learned_optimizer import Theta
from learned_opt._src.native import MOMENTUM_NETWORK


def momentum_native(
    theta: Theta,
    gradients: Sequence[jax.Array],
    params: Sequence[jax.Array],
    momenta: Sequence[jax.Array],
    constants: jax.Array,
    *,
    features: Sequence[ft.Feature],
    decays: Sequence[float],
    epsilon: float,
) -> list[tuple[jax.Array, jax.Array]]:
    """Steps and next momenta of all tensors of a network; arguments and results as of ``momentum_kernel``."""
    weights = [x for kernel, bias in layers(theta, constants) for x in (kernel, bias[:, 0])]
    tensors = [x for own in zip(gradients, params, momenta, strict=True) for x in own]
    like = [
        jax.ShapeDtypeStruct(x.shape, jnp.float32)
        for g, m in zip(gradients, momenta, strict=True)
        for x in (g, m)
    ]
    sources, factors = ft.rows_and_factors(features, len(decays))
    found = jax.ffi.ffi_call(
        MOMENTUM_NETWORK,
        like,
        vmap_method="sequential",
        # The next momenta take the place of the momenta.
        input_output_aliases={len(weights) + 3 * i + 2: 2 * i + 1 for i in range(len(gradients))},
    )(
        *weights,
        *tensors,
        layers=np.int32(len(weights) // 2),
        sources=sources,
        factors=factors,
        decays=np.asarray(decays, np.float32),
        epsilon=np.float32(epsilon),
    )
    return list(zip(found[::2], found[1::2], strict=True))
