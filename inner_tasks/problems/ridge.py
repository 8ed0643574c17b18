"""Ridge regression by gradient descent: theta is the logarithm of the L2 coefficient."""

from __future__ import annotations

import dataclasses
from typing import ClassVar

import jax
import jax.numpy as jnp
import numpy as np

# The largest eigenvalue of X^T X: with a learning rate of 0.001 this direction needs one step, and descent is
# stable up to exp(theta) = 1000.
LARGEST_EIGENVALUE = 1000.0


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class RidgeRegression:
    """Full-batch gradient descent from ``w = 0`` on the training loss of ridge regression.

    The training loss is::

        f(w) = (|X w - y|^2 + exp(theta) |w|^2) / 2,

    a *sum* over the training examples. ``L_t = mean((V w_t - u)^2)`` is the *mean* squared error on the
    held-out examples, taken after the step and without the penalty. Nothing is random. The horizon is long
    enough for 50,000 updates without a restart.

    Source: Vicol, Metz, Sohl-Dickstein, ICML 2021: an experiment of its published code (there on UCI yacht).
    """

    inputs: jax.Array  # X, float [n, features]
    targets: jax.Array  # y, float [n]
    held_out_inputs: jax.Array  # V, float [m, features]
    held_out_targets: jax.Array  # u, float [m]
    learning_rate: float = dataclasses.field(default=1e-3, metadata={"static": True})
    horizon: int = dataclasses.field(default=10**6, metadata={"static": True})
    max_loss: ClassVar[None] = None
    differentiable: ClassVar[bool] = True

    def init(self, key: jax.Array) -> jax.Array:
        """Zeros, float [features]."""
        del key
        return jnp.zeros(self.inputs.shape[1])

    def step(self, theta: jax.Array, weights: jax.Array, key: jax.Array) -> tuple[jax.Array, jax.Array]:
        """One step of gradient descent."""
        del key
        residuals = self.inputs @ weights - self.targets
        gradient = self.inputs.T @ residuals + jnp.exp(theta) * weights
        weights = weights - self.learning_rate * gradient
        return weights, self.held_out_loss(weights)

    def held_out_loss(self, weights: jax.Array) -> jax.Array:
        """``mean((V w - u)^2)``, ``[features] -> []``."""
        return jnp.mean((self.held_out_inputs @ weights - self.held_out_targets) ** 2)


def diabetes() -> RidgeRegression:
    """The progress of diabetes in 442 patients; the data comes with scikit-learn: no download, no cache.

    In a fixed random order, half of the patients are for training and half are held out. The 10 measurements
    are standardised, and the products of every two of them are appended and standardised too: 55 features,
    enough to overfit. All are then multiplied by one number that makes the largest eigenvalue of ``X^T X``
    1000. The target is standardised. All moments are those of the training half.
    """
    from sklearn import datasets  # takes a second to import

    measurements, progress = datasets.load_diabetes(return_X_y=True)
    # NumPy guarantees that the stream of RandomState never changes; it does not for Generator.
    order = np.random.RandomState(0).permutation(len(progress))
    measurements, progress, half = measurements[order], progress[order], len(progress) // 2

    def standardised(values: np.ndarray) -> np.ndarray:
        return (values - values[:half].mean(axis=0)) / values[:half].std(axis=0)

    plain, targets = standardised(measurements), standardised(progress)
    first, second = np.triu_indices(plain.shape[1], 1)
    inputs = np.hstack([plain, standardised(plain[:, first] * plain[:, second])])
    inputs *= np.sqrt(LARGEST_EIGENVALUE) / np.linalg.norm(inputs[:half], ord=2)
    return RidgeRegression(
        inputs=jnp.asarray(inputs[:half], jnp.float32),
        targets=jnp.asarray(targets[:half], jnp.float32),
        held_out_inputs=jnp.asarray(inputs[half:], jnp.float32),
        held_out_targets=jnp.asarray(targets[half:], jnp.float32),
    )
