"""The cost of an estimate, counted in its program, and its memory."""

from __future__ import annotations

import math
from collections.abc import Callable
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.extend.core import jaxprs_in_params

from tests.meta_train.estimators.cases import (
    case,
    every_estimator,
    every_estimator_compiled,
    make,
    whole_episodes,
)
from tests.meta_train.problems import (
    Layers,
    Multiplied,
)


def products(jaxpr: Any) -> int:
    """Number of products of ``Multiplied`` in a program, including those of derivatives.

    Each has 3 x 3 multiplications: a matrix times a vector, or the outer product that is its derivative with
    respect to the matrix. The body of a loop counts once per iteration, a batch once per member.
    """
    total = 0
    for equation in jaxpr.eqns:
        inner = [products(each) for each in jaxprs_in_params(equation.params)]
        if equation.primitive.name == "dot_general" and Multiplied.SCOPE in str(
            equation.source_info.name_stack
        ):
            (contracted, _), _ = equation.params["dimension_numbers"]
            left = equation.invars[0].aval.shape
            multiplications = math.prod(left[i] for i in contracted) * equation.outvars[0].aval.size
            total += multiplications // Multiplied.SIZE**2
        elif equation.primitive.name == "scan":
            total += equation.params["length"] * sum(inner)
        elif equation.primitive.name == "cond":
            total += max(inner)
        elif equation.primitive.name == "while":
            assert sum(inner) == 0  # its number of iterations is unknown
        else:
            total += sum(inner)
    return total


def horizon_for(name: str, truncation: int, horizon: int) -> int:
    """The horizon, or K if windows are whole episodes."""
    return truncation if whole_episodes(name) else horizon


@every_estimator
def test_cost_is_proportional_to_the_window_and_as_documented(name: str):
    """It does not depend on the horizon, of which a window is a small part."""
    theta = np.eye(Multiplied.SIZE, dtype=np.float32)
    for truncation in (4, 8):
        problem = Multiplied(horizon=horizon_for(name, truncation, 1000))
        estimator = make(name, problem, truncation)
        state = estimator.init(jax.random.key(0), theta, 0.0)
        program = jax.make_jaxpr(estimator.estimate)(theta, state, jax.random.key(1))
        assert products(program.jaxpr) == case(name).steps(theta.size) * truncation


def shapes(name: str, problem: Any, truncation: int) -> tuple[Callable[..., Any], tuple]:
    """The estimate as a function, and the shapes of its arguments."""
    theta = {"factor": jax.ShapeDtypeStruct((), jnp.float32), "shift": jax.ShapeDtypeStruct((), jnp.float32)}
    key = jax.eval_shape(jax.random.key, 0)
    estimator = make(name, problem, truncation)
    state = jax.eval_shape(partial(estimator.init, phase=0.0), key, theta)
    return estimator.estimate, (theta, state, key)


def size(tree: Any) -> int:
    return sum(leaf.size * leaf.dtype.itemsize for leaf in jax.tree.leaves(tree))


@every_estimator
def test_state_holds_as_many_inner_states_as_documented(name: str):
    """Independent of the horizon and K; computed from shapes, without running anything."""
    sizes = {
        (width, truncation, horizon): size(
            shapes(name, Layers(horizon_for(name, truncation, horizon), width), truncation)[1][1]
        )
        for width, truncation, horizon in ((1000, 8, 240), (2000, 8, 240), (1000, 24, 240), (1000, 8, 24_000))
    }
    narrow = sizes[1000, 8, 240]
    assert sizes[2000, 8, 240] - narrow == case(name).states(2) * 1000 * 4
    assert sizes[1000, 24, 240] == sizes[1000, 8, 24_000] == narrow


def temporaries(name: str, truncation: int, horizon: int) -> int:
    """Bytes that the compiled estimate needs in addition to its arguments and results."""
    estimate, arguments = shapes(name, Layers(horizon_for(name, truncation, horizon)), truncation)
    return jax.jit(estimate).lower(*arguments).compile().memory_analysis().temp_size_in_bytes


@every_estimator_compiled
def test_memory_does_not_depend_on_the_horizon(name: str):
    """It grows with K only by the inner states that are kept for backpropagation through a window.

    The four layers of a step are not kept, and a horizon 100 times as long adds nothing. Keys and losses of
    a window's steps are kept, with a few bytes each: less than 1% of a state.
    """
    state = 4 * Layers().width
    grown = temporaries(name, 24, 24_000) - temporaries(name, 8, 240)
    assert grown / state / (24 - 8) == pytest.approx(case(name).kept, abs=0.01)
