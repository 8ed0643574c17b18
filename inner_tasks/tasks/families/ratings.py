"""Matrix factorisation: embeddings of users and items, most of which are seen rarely."""

from __future__ import annotations

from typing import NamedTuple

import jax
import jax.numpy as jnp

from inner_tasks.task import Params, TaskFamily, TaskSettings
from inner_tasks.tasks.families.family import Variation, family, repeated

USERS, ITEMS, RANK = 128, 96, 8
TRUE_RANK = 4
MAX_LOSS = 1.5  # predicting the mean of a standardised rating has a squared error of 1


class Own(NamedTuple):
    """The part of a variation that only this family has."""

    users: jax.Array  # float32 [USERS, TRUE_RANK], true factors of the ratings
    items: jax.Array  # float32 [ITEMS, TRUE_RANK]
    noise: jax.Array  # float32 [], share of noise in the variance of a rating
    rarity: jax.Array  # float32 [], user or item number i is seen in proportion to i^-rarity


class RatingsBatch(NamedTuple):
    """A minibatch."""

    users: jax.Array  # int32 [batch]
    items: jax.Array  # int32 [batch]
    ratings: jax.Array  # float32 [batch]


def ratings(settings: TaskSettings) -> TaskFamily:
    """Ratings of 96 items by 128 users as products of embeddings of width 8; 2,016 parameters.

    The ratings have rank 4 and variance 1, of which up to half is noise. In a step most rows have no
    gradient: user or item number i is seen in proportion to ``i^-rarity``, with a rarity between 0 and 1.2.
    """
    shapes = {
        name: {
            "embedding": jax.ShapeDtypeStruct((rows, RANK), jnp.float32),
            "bias": jax.ShapeDtypeStruct((rows,), jnp.float32),
        }
        for name, rows in (("users", USERS), ("items", ITEMS))
    }

    def own(key: jax.Array) -> Own:
        factors_key, numbers_key = jax.random.split(key)
        factors = jax.random.normal(factors_key, (USERS + ITEMS, TRUE_RANK)) / TRUE_RANK**0.25
        noise, rarity = jax.random.uniform(numbers_key, (2,))
        return Own(factors[:USERS], factors[USERS:], 0.5 * noise, 1.2 * rarity)

    def sample(data: None, key: jax.Array, variation: Variation) -> RatingsBatch:
        own, count = variation.own, settings.batch_size
        seen_key, noise_key = jax.random.split(key)
        uniform = jax.random.uniform(seen_key, (2, count))
        users, items = _rare(uniform[0], own.rarity, USERS), _rare(uniform[1], own.rarity, ITEMS)
        users, items = repeated(users, variation.examples), repeated(items, variation.examples)
        clean = jnp.sum(own.users[users] * own.items[items], -1)
        noise = jnp.sqrt(own.noise) * jax.random.normal(noise_key, (count,))
        return RatingsBatch(users, items, jnp.sqrt(1 - own.noise) * clean + noise)

    def loss(params: Params, batch: RatingsBatch, variation: Variation) -> jax.Array:
        user, item = (
            (params[name]["embedding"][rows], params[name]["bias"][rows])
            for name, rows in (("users", batch.users), ("items", batch.items))
        )
        guesses = jnp.sum(user[0] * item[0], -1) + user[1] + item[1]
        return jnp.mean(jnp.square(guesses - batch.ratings))

    return family(
        shapes=shapes,
        load=lambda data_dir: None,
        sample=sample,
        loss=loss,
        max_loss=MAX_LOSS,
        settings=settings,
        own=own,
    )


def _rare(uniform: jax.Array, rarity: jax.Array, count: int) -> jax.Array:
    """Map uniform numbers to integers below `count`, with i in proportion to ``(i + 1)^-rarity``."""
    shares = jnp.cumsum(jnp.arange(1, count + 1) ** -rarity)
    return jnp.minimum(jnp.searchsorted(shares, uniform * shares[-1]), count - 1).astype(jnp.int32)
