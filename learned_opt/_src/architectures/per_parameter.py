"""A small network applied to every parameter: the Flax module, and the fast way to run it.

The plain formula builds one row of inputs per parameter and multiplies ``[n, inputs]`` matrices.
``apply_network`` computes the same thing, several times faster on a CPU:

* features that are constant over a tensor are not part of the per-parameter product: their part of the
  first layer is computed once for the tensor and added to its bias;
* features come first, ``[inputs, n]``, and are computed in blocks of entries (``tensors.py``), so that
  they and the hidden layers of a block stay in cache and are never written out for a whole tensor.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import flax.linen as nn
import jax
import jax.numpy as jnp

from learned_opt._src.architectures.tensors import Each, Entries, Tensors
from learned_opt._src.learned_optimizer import Theta

# A fresh network should take steps of a size that trains, so its outputs are scaled down.
STEP_SCALE = 1e-3
MAGNITUDE_SCALE = 1e-3

# The network's features of the entries, in groups ``[k_1, ...], [k_2, ...], ...``
Features = Callable[[Entries, Each], Sequence[jax.Array]]


class PerParameterMLP(nn.Module):
    """A multilayer perceptron with ReLU that maps the features of one parameter to a few outputs.

    Attributes:
      hidden: widths of the hidden layers.
      outputs: number of outputs per parameter.
    """

    hidden: Sequence[int]
    outputs: int

    @nn.compact
    def __call__(self, features: jax.Array) -> jax.Array:
        """The plain formula: ``[..., inputs] -> [..., outputs]``."""
        for width in self.hidden:
            features = nn.relu(nn.Dense(width)(features))
        return nn.Dense(self.outputs)(features)


def init_network(key: jax.Array, inputs: int, hidden: Sequence[int], outputs: int) -> Theta:
    """Weights of a fresh ``PerParameterMLP``. The key is consumed."""
    return PerParameterMLP(hidden, outputs).init(key, jnp.zeros((1, inputs)))["params"]


def apply_network(
    theta: Theta,
    tensors: Tensors,
    features: Features,
    scale: jax.Array,
    constants: jax.Array,
    finish: Callable[[jax.Array, Entries, Each], jax.Array],
    *,
    hidden: Callable[[Entries], jax.Array] | None = None,
) -> jax.Array:
    """Run a ``PerParameterMLP`` over the entries of some tensors.

    Equal to ``finish(PerParameterMLP(...)(inputs))``, up to rounding, where the inputs of an entry are its
    features, each multiplied by the scale of its tensor, and then the constants of its tensor.

    Args:
      theta: weights of the module, as ``init_network`` made them.
      tensors: the tensors.
      features: computes the network's features of the entries.
      scale: ``[features, T]``, as from ``rms_scale``.
      constants: ``[c, T]``, inputs that are the same for a whole tensor, used without scaling; or
        ``[c, 1]`` if they are the same for all tensors.
      finish: ``(outputs, entries, each) -> [...]``, computes the step of each entry from the network's
        outputs ``[outputs, ...]``.
      hidden: ``entries -> [hidden, ...]``, the contribution of other inputs to the first layer, if any.

    Returns:
      ``[...]``, the result of ``finish`` for each entry.
    """
    (kernel, bias), *deeper = layers(theta, constants)

    def block(entries: Entries, each: Each) -> jax.Array:
        x = jnp.tensordot(kernel, jnp.concatenate(features(entries, each)) * each(scale), 1) + each(bias)
        if hidden:
            x = x + hidden(entries)
        for weights, own_bias in deeper:
            x = jnp.tensordot(weights, jax.nn.relu(x), 1) + each(own_bias)
        return finish(x, entries, each)

    return tensors.map(block)


def rms_scale(tensors: Tensors, features: Features, epsilon: float) -> jax.Array:
    """Factors that scale each feature of a tensor to unit root mean square, ``[features, T]``.

    ``1 / sqrt(epsilon + mean(x^2))`` over the entries of the tensor, so that the network does not depend on
    the scale of the loss and of the parameters.

    Args:
      tensors: the tensors.
      features: computes the network's features of the entries.
      epsilon: keeps features that are almost zero from being blown up.
    """
    squares = tensors.mean(lambda entries, each: jnp.square(jnp.concatenate(features(entries, each))))
    return jax.lax.rsqrt(epsilon + squares)


def layers(theta: Theta, constants: jax.Array) -> list[tuple[jax.Array, jax.Array]]:
    """Weights ``[outputs, inputs]`` and bias of each layer, for parameters that share their last inputs.

    The contribution of the shared `constants` ``[c, T]`` of T tensors is part of the bias of the first layer,
    ``[outputs, T]``; its weights are for the other inputs. The bias of the other layers is ``[outputs, 1]``.
    """
    each = [
        (theta[f"Dense_{i}"]["kernel"].T, theta[f"Dense_{i}"]["bias"][:, None]) for i in range(len(theta))
    ]
    (kernel, bias), *deeper = each
    k = kernel.shape[1] - constants.shape[0]
    return [(kernel[:, :k], bias + kernel[:, k:] @ constants), *deeper]


def small_step(outputs: jax.Array | Sequence[jax.Array]) -> jax.Array:
    """``-0.001 d exp(0.001 a)``, the update of direction d and magnitude a: ``[2, ...] -> [...]``."""
    direction, magnitude = outputs
    return -STEP_SCALE * direction * jnp.exp(MAGNITUDE_SCALE * magnitude)
