"""What every estimator promises, checked over all of ``ESTIMATORS``.

A new estimator needs a line in ``CASES`` that says what it promises. K is the truncation length, T the
horizon. K = 1, 2, 3 and T are run on the linear problem each time; the other problems at one K each time, and
at the rest with ``pytest -m slow``.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from functools import lru_cache, partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from jax.extend.core import jaxprs_in_params
from jax.flatten_util import ravel_pytree
from scipy.stats import chi2

from inner_tasks import LinearRecurrence
from learned_opt import UserError
from meta_train.estimators import ESTIMATORS, Estimator, Info
from meta_train.estimators.rtrl import MAX_ENTRIES
from meta_train.outer.population import population
from tests.compiling import briefly, often
from tests.meta_train.problems import (
    Descent,
    Fragile,
    Layers,
    Multiplied,
    Noise,
    Pendulum,
    TinyLearnedOptimizer,
    Wave,
)


class Case(NamedTuple):
    """What an estimator promises."""

    particles: int  # unrolled in every window
    steps: Callable[[int], int]  # steps of work per inner step of the window, given the entries of theta
    states: Callable[[int], int]  # inner states carried from window to window, given the entries of theta
    kept: int = 0  # inner states kept for each step of a window, to go back through it
    biased: bool = False  # the state at the start of a window counts as a constant
    differentiates: bool = False
    random: bool = True  # by perturbations or random signs, not by the data alone
    period: int | None = None  # windows that a perturbation serves, where a sum of them is carried
    options: dict[str, Any] = {}  # settings that are off by default


EPISODE = 1000  # windows; longer than any episode here

# Of steps: one forwards is 1. Backwards it is computed again, and its derivative with respect to state and
# theta are 2 more: with the way there 4. Forwards along a direction both are 2, and 1 for the step itself.
CASES = {
    "pes": Case(2, lambda p: 2, lambda p: 2, period=1),
    "nres": Case(2, lambda p: 2, lambda p: 2, period=EPISODE),
    "gpes": Case(2, lambda p: 2, lambda p: 2, period=2),
    "full-es": Case(2, lambda p: 2, lambda p: 2, period=1),
    "truncated-es": Case(3, lambda p: 3, lambda p: 1, biased=True),
    "tbptt": Case(1, lambda p: 4, lambda p: 1, kept=1, biased=True, differentiates=True, random=False),
    "bptt": Case(1, lambda p: 4, lambda p: 1, kept=1, differentiates=True, random=False),
    "rtrl": Case(1, lambda p: 2 * p + 1, lambda p: p + 1, differentiates=True, random=False),
    # Forwards for the two ways back (1), forwards along a direction (3), and two ways back (3 each).
    "uoro": Case(1, lambda p: 10, lambda p: 2, kept=1, differentiates=True),
    # Two particles of a pair, and the third particle forwards and back.
    "pes-analytic": Case(
        3, lambda p: 6, lambda p: 3, kept=1, differentiates=True, period=1, options={"analytic": True}
    ),
}
NAMES = [*ESTIMATORS, "pes-analytic"]
every_estimator = pytest.mark.parametrize("name", NAMES)


def case(name: str) -> Case:
    if name not in CASES:
        pytest.fail(
            f"the estimator '{name}' has no entry in CASES of tests/meta_train/test_contract.py; add a line "
            "that says what it promises, and this suite holds it to that"
        )
    return CASES[name]


def method(name: str) -> Any:
    return ESTIMATORS[name.removesuffix("-analytic")]


def make(name: str, problem: Any, truncation: int, sigma: float = 0.1) -> Estimator:
    """The estimator of that name, with the settings it takes. A perturbation of gpes serves two windows."""
    settings = {"sigma": sigma, "truncation": truncation, "perturbation_period": 2 * truncation}
    settings |= {"analytic": False} | case(name).options
    return method(name).make(problem, **{setting: settings[setting] for setting in method(name).settings})


def whole_episodes(name: str) -> bool:
    """Whether its windows are episodes, so that there is no K to choose."""
    return "truncation" not in method(name).settings


def at_truncations(*truncations: int, quick: tuple[int, ...], names: list[str] = NAMES) -> list[Any]:
    """Parameters ``name, truncation``; the last truncation is the horizon. Those not quick are slow."""
    pairs = [
        (name, truncation)
        for name in names
        for truncation in (truncations[-1:] if whole_episodes(name) else truncations)
    ]
    return [
        pytest.param(*pair, marks=[] if whole_episodes(pair[0]) or pair[1] in quick else pytest.mark.slow)
        for pair in pairs
    ]


# --- 1. The expected gradient ---------------------------------------------------------------------------


class Known(NamedTuple):
    """A problem whose gradient is known, at a theta."""

    problem: Any
    theta: Any
    sigma: float  # small enough for the smoothed loss to have the same gradient, to less than 0.1%
    samples: int  # enough for a standard error of 0.5%


KNOWN = {
    "linear": Known(LinearRecurrence(horizon=4, decay=0.9), np.float32(0.5), 0.1, 60_000),
    "descent": Known(Descent(horizon=5), np.float32(-1.0), 0.01, 75_000),
    "learned-optimizer": Known(
        TinyLearnedOptimizer(horizon=5),
        {"feed": np.array([0.5, 0.2], np.float32), "out": np.float32(1)},
        0.01,
        140_000,
    ),
}
EXACT = 9.049  # of "linear", sum_{t=1}^{4} (1 - 0.9^t) / (1 - 0.9)


class Mean(NamedTuple):
    """A mean of samples, and what it is uncertain by."""

    value: np.ndarray  # [entries of theta]
    covariance: np.ndarray  # of the value: the square of the standard error
    error: float  # standard error of the whole vector

    @classmethod
    def of(cls, samples: jax.Array) -> Mean:
        samples = np.asarray(samples, np.float64)
        covariance = np.atleast_2d(np.cov(samples, rowvar=False)) / len(samples)
        return cls(samples.mean(axis=0), covariance, math.sqrt(np.trace(covariance)))


@lru_cache
def forward_mode(name: str) -> Callable[[int], Mean]:
    """``held -> `` the gradient of an episode's summed loss, with the state at every held-th step constant.

    A plain loop over the problem's steps, differentiated forwards. It has random data of its own, so that
    it shares nothing with what it is compared with.
    """
    problem, theta, _, samples = KNOWN[name]

    def gradient(key: jax.Array, held: jax.Array) -> jax.Array:
        start, data = jax.random.split(key)

        def total(theta: Any) -> jax.Array:
            def step(carry: tuple, inputs: tuple) -> tuple:
                state, total = carry
                t, key = inputs
                state = optax.tree.where(t % held == 0, jax.lax.stop_gradient(state), state)
                state, loss = problem.step(theta, state, key)
                return (state, total + loss), None

            steps = jnp.arange(problem.horizon), jax.random.split(data, problem.horizon)
            return jax.lax.scan(step, (problem.init(start), 0.0), steps)[0][1]

        return ravel_pytree(jax.jacfwd(total)(theta))[0]

    keys = jax.random.split(jax.random.key(1), samples)
    mapped = often(jax.vmap(gradient, in_axes=(0, None)))
    return lru_cache(lambda held: Mean.of(mapped(keys, held)))


def estimated(name: str, known: str, truncation: int) -> Mean:
    """What an estimator makes of the gradient of an episode's summed loss.

    Two episodes, one after the other, of many independent units: what the first leaves behind would show in
    the second.
    """
    problem, theta, sigma, samples = KNOWN[known]
    estimator = make(name, problem, truncation, sigma)
    windows = -(-problem.horizon // truncation)

    def unit(key: jax.Array) -> jax.Array:
        start, rest = jax.random.split(key)

        def window(carry: tuple, key: jax.Array) -> tuple:
            state, total = carry
            gradient, state, _ = estimator.estimate(theta, state, key)
            return (state, total + truncation * ravel_pytree(gradient)[0]), None

        carry = estimator.init(start, theta, 0.0), jnp.zeros_like(ravel_pytree(theta)[0])
        return jax.lax.scan(window, carry, jax.random.split(rest, 2 * windows))[0][1] / 2

    if not case(name).random:
        samples //= 8
    jit = briefly if samples < 70_000 else often
    keys = jax.random.split(jax.random.key(2), samples)
    return Mean.of(jit(jax.vmap(unit))(keys))


def standard_errors(mean: Mean, other: Mean, rounding: float) -> float:
    """How far two independent means are from each other, in standard errors.

    Of several entries: the length of the difference where the standard error is 1 in every direction. A
    rounding error is added to the standard errors, since some have no other.
    """
    covariance = mean.covariance + other.covariance + rounding**2 * np.eye(len(mean.value))
    difference = mean.value - other.value
    return math.sqrt(difference @ np.linalg.solve(covariance, difference))


def check_expected_gradient(name: str, known: str, truncation: int) -> None:
    exact = forward_mode(known)(KNOWN[known].problem.horizon)
    promised = forward_mode(known)(truncation) if case(name).biased else exact
    size = np.linalg.norm(exact.value)
    rounding = 1e-5 * size
    mean = estimated(name, known, truncation)
    assert math.hypot(mean.error, promised.error) < 0.005 * size
    # One number is as seldom more than 3 standard errors off as several are off by more than this.
    bound = math.sqrt(chi2.isf(chi2.sf(9, 1), len(exact.value)))
    assert standard_errors(mean, promised, rounding) < bound
    if case(name).biased and truncation < KNOWN[known].problem.horizon:
        assert standard_errors(mean, exact, rounding) > 10


def test_forward_mode_gives_what_is_known_in_closed_form():
    assert forward_mode("linear")(4).value == pytest.approx(EXACT, rel=1e-6)
    assert forward_mode("linear")(2).value == pytest.approx(5.8, rel=1e-6)


@pytest.mark.parametrize("name, truncation", at_truncations(1, 2, 3, 4, quick=(1, 2, 3, 4)))
def test_gradient_of_a_linear_recurrence(name: str, truncation: int):
    """3 does not divide the horizon: an episode ends inside a window."""
    check_expected_gradient(name, "linear", truncation)


@pytest.mark.parametrize("name, truncation", at_truncations(1, 2, 3, 5, quick=(2,)))
def test_gradient_of_a_learning_rate_on_a_quadratic(name: str, truncation: int):
    check_expected_gradient(name, "descent", truncation)


@pytest.mark.parametrize("name, truncation", at_truncations(1, 2, 3, 5, quick=(2,)))
def test_gradient_of_a_small_learned_optimizer(name: str, truncation: int):
    check_expected_gradient(name, "learned-optimizer", truncation)


# --- 2. Cost -------------------------------------------------------------------------------------------


def products(jaxpr: Any) -> int:
    """Products of ``Multiplied`` that a program computes, those of its derivatives among them.

    Each has 3 x 3 multiplications: a matrix times a vector, or the outer product that is its derivative with
    respect to the matrix. Loops count as often as they run, batches as many times as they have members.
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
            assert sum(inner) == 0  # how often it runs is not written down
        else:
            total += sum(inner)
    return total


def horizon_for(name: str, truncation: int, horizon: int) -> int:
    """Where episodes are windows, it is the horizon that grows with K."""
    return truncation if whole_episodes(name) else horizon


@every_estimator
def test_cost_is_proportional_to_the_window_and_as_documented(name: str):
    """And does not depend on the horizon, of which a window is a small part."""
    theta = np.eye(Multiplied.SIZE, dtype=np.float32)
    for truncation in (4, 8):
        problem = Multiplied(horizon=horizon_for(name, truncation, 1000))
        estimator = make(name, problem, truncation)
        state = estimator.init(jax.random.key(0), theta, 0.0)
        program = jax.make_jaxpr(estimator.estimate)(theta, state, jax.random.key(1))
        assert products(program.jaxpr) == case(name).steps(theta.size) * truncation


# --- 3. Memory -----------------------------------------------------------------------------------------


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
    """Whatever the horizon and K. Shapes tell, nothing is run."""
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
    """Bytes that the compiled estimate needs besides its arguments and results."""
    estimate, arguments = shapes(name, Layers(horizon_for(name, truncation, horizon)), truncation)
    return briefly(estimate).lower(*arguments).compile().memory_analysis().temp_size_in_bytes


@every_estimator
def test_memory_does_not_depend_on_the_horizon(name: str):
    """It grows with K by the inner states that are kept to go back through a window, and by nothing else.

    Of a step's four layers nothing is kept, and nothing at all for the hundredfold horizon. Keys and
    losses of a window's steps are kept, of a few bytes each: less than 1% of a state.
    """
    state = 4 * Layers().width
    grown = temporaries(name, 24, 24_000) - temporaries(name, 8, 240)
    assert grown / state / (24 - 8) == pytest.approx(case(name).kept, abs=0.01)


# --- 4. Ends of episodes, and what is counted ------------------------------------------------------------


class Estimated(NamedTuple):
    """One estimate, as NumPy arrays."""

    key: jax.Array  # that it was made with
    gradient: Any
    state: Any  # after it
    info: Info


@lru_cache
def fragile(name: str, truncation: int, max_loss: float | None) -> tuple[Estimator, Callable[..., Any]]:
    estimator = make(name, Fragile(max_loss=max_loss), truncation, sigma=1e-4)
    return estimator, briefly(estimator.estimate)


def broken(state: Any) -> Any:
    """A state of an estimator in which every inner state is broken, wherever it is kept."""
    return jax.tree.map(lambda x: jnp.ones_like(x) if x.dtype == Fragile.FLAG else x, state)


def two_episodes(
    name: str, truncation: int, max_loss: float | None = None, break_before: int | None = None
) -> list[Estimated]:
    estimator, estimate = fragile(name, truncation, max_loss)
    theta, steps = np.float32(0.5), []
    state = estimator.init(jax.random.key(0), theta, 0.0)
    for window in range(2 * -(-Fragile().horizon // truncation)):
        if window == break_before:
            state = broken(state)
        key = jax.random.key(window)
        gradient, state, info = estimate(theta, state, key)
        steps.append(Estimated(key, *jax.tree.map(np.asarray, (gradient, state, info))))
    return steps


fragile_truncations = pytest.mark.parametrize("name, truncation", at_truncations(1, 2, 3, 7, quick=(3,)))


@fragile_truncations
def test_windows_end_with_the_episode(name: str, truncation: int):
    """Of 7 steps, in windows of 3: 3, 3 and 1, and a new episode. Steps past the end are not counted, and
    change no inner state.
    """
    particles, position, x = case(name).particles, 0, 1.0
    for window in two_episodes(name, truncation):
        if position == 7:
            position, x = 0, 1.0
        real, loss = min(truncation, 7 - position), 0.0
        for _ in range(real):
            x = 0.5 * x + 0.5
            loss += x**2
        position += real
        assert window.state.position == position
        counters = [leaf for leaf in jax.tree.leaves(window.state) if leaf.dtype == Fragile.COUNTER]
        assert counters and all(np.all(counter == position) for counter in counters)
        assert window.info["steps"] == particles * real
        assert window.info["episodes"] == particles * (position == 7)
        assert window.info["loss"] == pytest.approx(particles * loss, rel=1e-3)
        assert (window.info["clipped"], window.info["nonfinite"], window.info["units"]) == (0, 0, 1)


@pytest.mark.parametrize("truncation", [2, 3])
@every_estimator
def test_phases_start_at_whole_windows(name: str, truncation: int):
    estimator = make(name, LinearRecurrence(horizon=10), truncation)
    starts = [int(estimator.init(jax.random.key(0), np.float32(0), i / 4).position) for i in range(4)]
    windows = {2: [0, 2, 4, 6], 3: [0, 3, 6, 9]}[truncation]
    assert starts == ([0, 0, 0, 0] if whole_episodes(name) else windows)


# --- 5. Noise ------------------------------------------------------------------------------------------


@every_estimator
def test_common_randomness_cancels_exactly(name: str):
    """Data and initial state are common to a pair: a loss that is noise alone has a gradient of exactly 0."""
    estimator = make(name, Noise(horizon=6), 4)
    estimate, losses = briefly(estimator.estimate), []
    for seed in range(5):
        state = estimator.init(jax.random.key(seed), np.float32(0), 0.0)
        for window in range(4):
            key = jax.random.fold_in(jax.random.key(seed), window)
            gradient, state, info = estimate(np.float32(0), state, key)
            assert gradient == 0
            losses.append(info["loss"])
    assert np.std(losses) > 1


# --- 6. and 9. Populations -----------------------------------------------------------------------------

PENDULUM = {"damping": np.float32(0.8), "push": np.float32(0.2)}


def check_one_unit(name: str, truncation: int) -> None:
    make_estimator = partial(make, name, truncation=truncation)
    alone, one = (
        make_estimator(Pendulum()),
        population(make_estimator, Pendulum(), units=1, devices=1),
    )
    state = one.init(jax.random.key(0), PENDULUM)
    own = alone.init(jax.random.fold_in(jax.random.key(0), 0), PENDULUM, 0.0)
    gradient, state, info = one.estimate(PENDULUM, state, jax.random.key(1))
    expected, own, own_info = briefly(alone.estimate)(PENDULUM, own, jax.random.fold_in(jax.random.key(1), 0))
    for entry in PENDULUM:
        np.testing.assert_allclose(gradient[entry], expected[entry], rtol=1e-4)
    assert info["steps"] == own_info["steps"]
    assert info["loss"] == pytest.approx(float(own_info["loss"] / own_info["steps"]), rel=1e-5)
    assert np.isnan(info["snr"])  # one alone has no scatter


def test_population_of_one():
    check_one_unit("pes", 2)


@pytest.mark.slow
@pytest.mark.parametrize("name, truncation", at_truncations(1, 3, 6, quick=(1, 3, 6)))
def test_population_of_one_of_any_estimator(name: str, truncation: int):
    check_one_unit(name, truncation)


def three_updates(name: str, devices: int) -> Any:
    """Theta, and all particles and diagnostics, after three updates of a population of four units."""
    particles = population(partial(make, name, truncation=2), Pendulum(horizon=5), units=4, devices=devices)
    theta, infos = PENDULUM, []
    state = particles.init(jax.random.key(0), theta)
    for update in range(3):
        gradient, state, info = particles.estimate(theta, state, jax.random.key(1 + update))
        theta = jax.tree.map(lambda t, g: np.asarray(t - 0.01 * g), theta, gradient)
        infos.append(jax.tree.map(np.asarray, info))
    assert all(0 < info["gradient_norm"] < np.inf for info in infos)
    return theta, particles.gather(state), infos


# Of those that are another by a setting, the other goes through the quick tests.
BY_A_SETTING = ("nres", "gpes", "full-es", "bptt", "pes-analytic")


@pytest.mark.parametrize(
    "name, devices",
    [
        pytest.param(name, devices, marks=pytest.mark.slow if devices == 2 or name in BY_A_SETTING else [])
        for name in NAMES
        for devices in (2, 4)
    ],
)
def test_number_of_devices_changes_no_bit(name: str, devices: int):
    """Four devices have one unit each."""
    jax.tree.map(np.testing.assert_array_equal, three_updates(name, 1), three_updates(name, devices))


# --- 7. Losses that are not finite -----------------------------------------------------------------------


def check_broken_episode(name: str, truncation: int, max_loss: float | None) -> None:
    """An episode that blows up in its last window but one (or its only one), and the episode after it."""
    windows = -(-7 // truncation)
    breaks = max(0, windows - 2)
    sound = two_episodes(name, truncation, max_loss)
    spoilt = two_episodes(name, truncation, max_loss, break_before=breaks)
    for number, window in enumerate(spoilt):
        if breaks <= number < windows:
            # The first loss of the broken system is large, all others are infinite.
            large = number == breaks
            infinite = min(truncation, 7 - number * truncation) - large
            assert window.info["nonfinite"] == case(name).particles * infinite
            if max_loss is None:
                assert window.info["clipped"] == 0
                assert infinite == 0 or not np.isfinite(optax.tree.norm(window.gradient))
            else:
                assert window.info["clipped"] == case(name).particles * large
                assert window.info["loss"] == pytest.approx(
                    case(name).particles * max_loss * (infinite + large)
                )
                assert np.all(np.isfinite(window.gradient))
        else:
            # Before it breaks, and in the next episode, it is as if nothing had happened.
            np.testing.assert_array_equal(window.gradient, sound[number].gradient)
            assert window.info == sound[number].info
    assert all(np.isfinite(window.gradient) for window in sound)


@fragile_truncations
def test_losses_that_are_not_finite_are_bounded_and_counted(name: str, truncation: int):
    """With a largest loss the gradient stays finite, and the next episode is sound."""
    check_broken_episode(name, truncation, max_loss=100.0)


@fragile_truncations
def test_without_a_largest_loss_the_gradient_shows_that_it_is_not_finite(name: str, truncation: int):
    """Its norm, that is: by it the outer loop knows what to skip."""
    check_broken_episode(name, truncation, max_loss=None)


# --- 8. Double precision, against NumPy ------------------------------------------------------------------

WAVE = np.array([1.3, 0.4])  # a, b
SIGMA = 0.1


@lru_cache
def in_double_precision(name: str, truncation: int) -> list[Estimated]:
    """Two episodes of ``Wave``."""
    with jax.enable_x64(True):
        theta = {"a": WAVE[0], "b": WAVE[1]}
        estimator = make(name, Wave(), truncation, SIGMA)
        state, estimate, steps = (
            estimator.init(jax.random.key(0), theta, 0.0),
            briefly(estimator.estimate),
            [],
        )
        for window in range(2 * -(-Wave().horizon // truncation)):
            key = jax.random.key(100 + window)
            gradient, state, info = estimate(theta, state, key)
            steps.append(Estimated(key, *jax.tree.map(np.asarray, (gradient, state, info))))
    return steps


def vector(tree: dict[str, np.ndarray]) -> np.ndarray:
    return np.array([tree["a"], tree["b"]])


def derivative(f: Callable[[np.ndarray], complex], at: np.ndarray) -> np.ndarray:
    """By a step into the imaginary, to all digits."""
    tiny = 1e-30
    return np.array([f(at + 1j * tiny * direction).imag / tiny for direction in np.eye(len(at))])


def windows_of_episodes(steps: list[Estimated], truncation: int) -> list[tuple[Estimated, int, int]]:
    """With the number of each in its episode, and its real steps."""
    windows = -(-Wave().horizon // truncation)
    numbers = [number % windows for number in range(len(steps))]
    return [
        (step, number, min(truncation, Wave().horizon - number * truncation))
        for step, number in zip(steps, numbers, strict=True)
    ]


def reached(theta: np.ndarray, steps: int) -> complex:
    return Wave.window(theta, Wave.START, steps)[0]


def perturbation_of(step: Estimated) -> np.ndarray:
    """What a window draws, from the key of its noise."""
    with jax.enable_x64(True):
        noise = optax.tree.random_like(jax.random.split(step.key, 3)[1], {"a": WAVE[0], "b": WAVE[1]})
        return SIGMA * vector(jax.tree.map(np.asarray, noise))


def numpy_persistent(
    steps: list[Estimated], truncation: int, period: int, analytic: bool
) -> list[np.ndarray]:
    """PES and its kin: ``g = xi (L(+) - L(-)) / (2 sigma^2 K)``; with the control variate
    ``g = [p + xi_old (L(+) - L(-) - 2 epsilon . p) / (2 sigma^2)] / K``.
    """
    gradients = []
    for step, number, real in windows_of_episodes(steps, truncation):
        if number == 0:
            states, xi = {+1: Wave.START, -1: Wave.START}, np.zeros(2)
        old, losses = xi, {}
        if number % period == 0:
            epsilon = perturbation_of(step)
            xi = old + epsilon
        for sign in states:
            states[sign], losses[sign] = Wave.window(WAVE + sign * epsilon, states[sign], real)
        slope = (losses[+1] - losses[-1]) / (2 * SIGMA**2)
        if analytic:
            start = reached(WAVE, number * truncation)
            direct = derivative(
                lambda theta, start=start, real=real: Wave.window(theta, start, real)[1], WAVE
            )
            gradients.append((direct + old * (slope - epsilon @ direct / SIGMA**2)) / truncation)
        else:
            gradients.append(xi * slope / truncation)
    return gradients


def numpy_truncated_es(steps: list[Estimated], truncation: int) -> list[np.ndarray]:
    gradients = []
    for step, number, real in windows_of_episodes(steps, truncation):
        epsilon = perturbation_of(step)
        start = reached(WAVE, number * truncation)
        losses = [Wave.window(WAVE + sign * epsilon, start, real)[1] for sign in (+1, -1)]
        gradients.append(epsilon * (losses[0] - losses[1]) / (2 * SIGMA**2) / truncation)
    return gradients


def numpy_gradient(steps: list[Estimated], truncation: int, held: bool) -> list[np.ndarray]:
    """Of the window's loss, with respect to the theta of all steps so far; or with its first state held."""

    def loss(theta: np.ndarray, number: int, real: int) -> complex:
        start = reached(WAVE if held else theta, number * truncation)
        return Wave.window(theta, start, real)[1] / truncation

    return [
        derivative(partial(loss, number=number, real=real), WAVE)
        for _, number, real in windows_of_episodes(steps, truncation)
    ]


def numpy_uoro(steps: list[Estimated], truncation: int) -> list[np.ndarray]:
    """The formula, with the random signs that the carried vector tells. The state is one number."""
    from meta_train.estimators.uoro import TINY

    gradients = []
    for step, number, real in windows_of_episodes(steps, truncation):
        if number == 0:
            u, v = 0.0, np.zeros(2)
        at = np.array([*WAVE, reached(WAVE, number * truncation).real])

        def moved(at: np.ndarray, output: int, real: int = real) -> complex:
            return Wave.window(at[:2], at[2], real)[output]

        *by_theta, by_state = derivative(partial(moved, output=0), at)
        *direct, slope = derivative(partial(moved, output=1), at)
        gradients.append((slope * u * v + np.array(direct)) / truncation)

        pushed, by_theta = by_state * u, np.array(by_theta)
        old = np.sqrt((np.linalg.norm(v) + TINY) / (abs(pushed) + TINY))
        new = np.sqrt((np.linalg.norm(by_theta) + TINY) / (1 + TINY))
        sign = (float(step.state.carried.state_vector[0]) - old * pushed) / new
        assert abs(sign) == pytest.approx(1, abs=1e-6)
        u, v = old * pushed + new * np.sign(sign), v / old + np.sign(sign) * by_theta / new
    return gradients


double_precision_truncations = pytest.mark.parametrize(
    "name, truncation", at_truncations(1, 2, 3, 5, quick=(2,))
)


@double_precision_truncations
def test_double_precision_agrees_with_numpy(name: str, truncation: int):
    """Those that perturb: with the formula, given what they have drawn. The others: with the gradient."""
    steps, promise = in_double_precision(name, truncation), case(name)
    if promise.period is not None:
        tolerance = 1e-8
        expected = numpy_persistent(steps, truncation, promise.period, name == "pes-analytic")
    elif name == "truncated-es":
        tolerance, expected = 1e-8, numpy_truncated_es(steps, truncation)
    elif name == "uoro":
        tolerance, expected = 1e-8, numpy_uoro(steps, truncation)
    else:
        tolerance, expected = 1e-10, numpy_gradient(steps, truncation, held=promise.biased)
    for step, gradient in zip(steps, expected, strict=True):
        assert all(leaf.dtype == np.float64 for leaf in step.gradient.values())
        assert all(leaf.dtype == np.float32 for leaf in step.info.values())
        assert np.linalg.norm(vector(step.gradient) - gradient) <= tolerance * np.linalg.norm(gradient)
    assert max(np.linalg.norm(gradient) for gradient in expected) > 0.1


persistent = [name for name in NAMES if name in CASES and CASES[name].period is not None]


@pytest.mark.parametrize("name, truncation", at_truncations(1, 2, 3, 5, quick=(2,), names=persistent))
def test_xi_is_the_sum_of_what_was_drawn_in_the_episode(name: str, truncation: int):
    """It includes the newest perturbation, and starts anew with every episode."""
    xi, drawn = np.zeros(2), []
    for step, number, _ in windows_of_episodes(in_double_precision(name, truncation), truncation):
        if number % case(name).period == 0:
            drawn.append(perturbation_of(step))
            xi = drawn[-1] if number == 0 else xi + drawn[-1]
        # Compiled, sigma is multiplied in another order.
        np.testing.assert_allclose(vector(step.state.carried.xi), xi, rtol=1e-14)
        assert step.info["xi_norm"] == pytest.approx(np.linalg.norm(xi), rel=1e-6)
    assert len(drawn) >= 2 and np.all(np.diff(drawn, axis=0) != 0)


# --- 10. Refusals --------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", [name for name in NAMES if name in CASES and CASES[name].differentiates])
def test_problem_without_derivative_is_refused(name: str):
    """And another estimator is named that takes it."""
    with pytest.raises(UserError, match=r"no derivative.*choose an estimator.*pes"):
        make(name, Pendulum(differentiable=False), 2)


@pytest.mark.parametrize("name", [name for name in NAMES if name in CASES and not CASES[name].differentiates])
def test_problem_without_derivative_is_taken_by_those_that_need_none(name: str):
    make(name, Pendulum(differentiable=False), 2)


def test_rtrl_refuses_a_large_theta():
    estimator = make("rtrl", LinearRecurrence(), 2)
    estimator.init(jax.random.key(0), np.zeros(MAX_ENTRIES, np.float32), 0.0)
    with pytest.raises(UserError, match=r"theta has 1,025.*at most 1,024.*[Cc]hoose a smaller"):
        estimator.init(jax.random.key(0), np.zeros(MAX_ENTRIES + 1, np.float32), 0.0)


def test_gpes_refuses_a_period_of_no_whole_windows():
    with pytest.raises(UserError, match=r"period is 5 steps; it must be a multiple.*K = 2"):
        ESTIMATORS["gpes"].make(LinearRecurrence(10), sigma=0.1, truncation=2, perturbation_period=5)
    # To the end of the episode is no multiple either, but says what it means.
    ESTIMATORS["gpes"].make(LinearRecurrence(10), sigma=0.1, truncation=4, perturbation_period=10)
