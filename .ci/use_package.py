"""Use the installed package like a user without a checkout: train with each pretrained optimizer.

python .ci/use_package.py       in a folder that is not the checkout
"""

from __future__ import annotations

import sys
from pathlib import Path

import jax
import jax.numpy as jnp
import optax

import learned_opt

CHECKOUT = Path(__file__).resolve().parents[1]


def training_losses(tx: optax.GradientTransformation, steps: int) -> jax.Array:
    """Losses of linear regression on noiseless data, float32 [steps]."""
    inputs = jax.random.normal(jax.random.key(0), (64, 4))
    targets = inputs @ jnp.array([1.0, -2.0, 3.0, 0.5])

    def loss_fn(params: dict[str, jax.Array]) -> jax.Array:
        return jnp.mean((inputs @ params["weights"] + params["bias"] - targets) ** 2)

    def step(carry, _):
        params, state = carry
        loss, gradients = jax.value_and_grad(loss_fn)(params)
        updates, state = tx.update(gradients, state, params)
        return (optax.apply_updates(params, updates), state), loss

    params = {"weights": jnp.zeros(4), "bias": jnp.zeros(())}
    return jax.lax.scan(step, (params, tx.init(params)), length=steps)[1]


if __name__ == "__main__":
    if Path(learned_opt.__file__).resolve().is_relative_to(CHECKOUT):
        sys.exit(f"learned_opt is imported from the checkout, {learned_opt.__file__}; install the package")
    print(f"learned-opt {learned_opt.__version__}, JAX {jax.__version__}, {learned_opt.__file__}")
    names = learned_opt.pretrained_names()
    if not names:
        sys.exit("the package has no pretrained optimizer")
    for name in names:
        losses = training_losses(learned_opt.pretrained(name), 500)
        print(f"{name}: loss {losses[0]:.3g} -> {losses[-1]:.3g}")
        if not losses[-1] < 0.5 * losses[0]:
            sys.exit(f"{name} does not train")
