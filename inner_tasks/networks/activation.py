"""Nonlinearities by name."""

from __future__ import annotations

from collections.abc import Callable, Mapping

import jax

Activation = Callable[[jax.Array], jax.Array]
ACTIVATIONS: Mapping[str, Activation] = {"relu": jax.nn.relu, "tanh": jax.nn.tanh, "gelu": jax.nn.gelu}
