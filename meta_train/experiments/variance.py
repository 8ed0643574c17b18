"""The variance of PES over the number of unrolls: it grows for independent windows, but not for equal ones.

Protocol: the weights theta of a character LSTM with 5 units are fixed. It reads T = 1,000 characters:
uniformly random ones, one repeated character, or text. Sigma is 1e-3, N = 1,000 particles. The measured
quantity is ``E|g - E g|^2 / |E g|^2`` for the gradient of an episode, which is cut into 1 to 1,000 unrolls;
windows of random characters are nearly independent, and those of one repeated character are equal. The small
scale has 1, 10 and 100 unrolls, and only PES.

A window is one unroll of K steps, and an episode has W = T / K windows. Let p_wj be the derivative of the
loss of window w with respect to theta_j, the copy of theta that acts in window j <= w, and q_ij the sum of
p_wj over w >= max(i, j). In the limit of small sigma, the estimates of an antithetic pair over an episode sum
to

    g = sigma^-2 sum_ij epsilon_i (epsilon_j . q_ij)

If each window depends only on its own copy (a network without memory), then with P entries of theta

    E|g - E g|^2 = sum_{w=1}^{W} (P w + 1) |p_ww|^2

Two cases of this, divided by |E g|^2, are the lines in the picture. If the window gradients are independent,
of equal size and of mean zero, |E g|^2 is W |p_ww|^2 on average, which gives P (W + 1) / 2 + 1. If they are
equal, |E g|^2 is W^2 |p_ww|^2, which gives 1 / W of that. ``share_of_variance`` has the formula for a network
with memory.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
from rich.console import Console

from inner_tasks import UnrolledProblem
from inner_tasks.datasets.text import encode, python_help
from inner_tasks.problems.character_lstm import CharacterLSTM
from learned_opt import UserError
from meta_train.estimators import Estimator, full_es, nres, pes
from meta_train.estimators.antithetic import perturbation
from meta_train.estimators.base import State, Theta
from meta_train.estimators.episodes import Estimate, episodic
from meta_train.estimators.window import unroll, unroll_with_gradient
from meta_train.experiments.base import Experiment, Outcome, Result, Settings, Verdict

HORIZON = 1000
ALPHABET = 50  # the number of characters in Penn Treebank
SIGMA = 1e-3
PARTICLES = 1000
SAMPLES = 1000  # pairs, or single particles; they determine a variance to about 4%
INPUTS = {"random": "random characters", "repeated": "one repeated character", "text": "text"}
FITTED_FROM = 10  # unrolls; with fewer, an episode's mean gradient still has an effect


class Method(NamedTuple):
    """How one method is run."""

    make: Callable[..., Estimator]  # (problem, truncation) -> estimator of one unit
    predicted: Callable[..., jax.Array]  # (W, problem, theta, exact gradient) -> total variance of one unit
    unrolls: tuple[int, ...]
    particles: int = 2  # of a unit


def methods(scale: str) -> dict[str, Method]:
    """The methods by name."""
    if scale == "small":
        return {"pes": Method(partial(pes, sigma=SIGMA), pes_variance, (1, 10, 100))}
    every, decades = (1, 2, 5, 10, 20, 50, 100, 200, 500, 1000), (1, 10, 100, 1000)
    return {
        "pes": Method(partial(pes, sigma=SIGMA), pes_variance, every),
        "nres": Method(partial(nres, sigma=SIGMA), es_variance, decades),
        "full-es": Method(lambda problem, truncation: full_es(problem, sigma=SIGMA), es_variance, (1,)),
        "pes-plain": Method(partial(plain_pes, sigma=SIGMA), plain_variance, decades, particles=1),
    }


def plain_pes(problem: UnrolledProblem, *, sigma: float, truncation: int) -> Estimator:
    """PES with one particle instead of a pair: ``g = xi L(+) / (sigma^2 K)``.

    It exists only here, to show its cost: the loss itself, and not its change, multiplies the noise.
    """

    def start(key: jax.Array, theta: Theta) -> State:
        return problem.init(key), optax.tree.zeros_like(theta)

    def window(
        theta: Theta, carried: State, position: jax.Array, noise_key: jax.Array, data_key: jax.Array
    ) -> Estimate:
        inner, xi = carried
        epsilon = perturbation(noise_key, theta, sigma)
        xi = optax.tree.add(xi, epsilon)
        particle = unroll(problem, optax.tree.add(theta, epsilon), inner, position, data_key, truncation)
        gradient = optax.tree.scale(particle.loss / sigma**2, xi)
        return Estimate(gradient, (particle.state, xi), (particle,), xi)

    return episodic(problem, truncation, start, window)


def read_text(path: Path | None) -> str:
    """The text of a file, or Python's help on its own syntax, which comes with every Python.

    Any run of white space counts as one space, as in Penn Treebank: layout is not language.

    Raises:
      UserError: the file cannot be read, is not UTF-8, or is too short.
    """
    try:
        text = python_help() if path is None else path.read_text("utf-8")
    except OSError as error:
        raise UserError(
            f"cannot read the text {path}: {error.strerror}; give a text file with --text"
        ) from None
    except UnicodeDecodeError as error:
        raise UserError(
            f"the text {path} is not UTF-8 (byte {error.start}); convert it, or give another file with --text"
        ) from None
    text = " ".join(text.split())
    if len(text) <= HORIZON:
        raise UserError(
            f"the text {path} has {len(text)} characters (a run of white space counts as one), but at least "
            f"{HORIZON + 1} are needed; give a longer text with --text"
        )
    return text


def inputs(text: np.ndarray, seed: int) -> np.ndarray:
    """The inputs of the network in the order of ``INPUTS``, int32 [inputs, T + 1].

    The text is a passage from a random place; the repeated character is its first one.
    """
    rng = np.random.default_rng(seed)
    start = rng.integers(len(text) - HORIZON)
    stretch = text[start : start + HORIZON + 1]
    random = rng.integers(ALPHABET, size=HORIZON + 1, dtype=np.int32)
    return np.stack([random, np.full_like(stretch, stretch[0]), stretch])


class Case(NamedTuple):
    """The inputs, weights and exact gradients of one seed."""

    problems: CharacterLSTM  # one for each input: texts are [inputs, T + 1]
    theta: jax.Array  # [P], for all of them
    gradients: jax.Array  # [inputs, P], exact, of an episode's summed loss
    losses: jax.Array  # [inputs], mean over the steps of an episode
    key: jax.Array  # for perturbations


@jax.jit
def case(texts: jax.Array, seed: jax.Array) -> Case:
    """The case of a seed, with its own theta and the exact gradients by reverse mode.

    The exact gradients stand for the expectation of the estimates: at this sigma, the effect of smoothing is
    far too small to be measured here.
    """
    init_key, key = jax.random.split(jax.random.key(seed))
    problems = CharacterLSTM(texts, ALPHABET)
    theta = CharacterLSTM(texts[0], ALPHABET).init_theta(init_key)

    def exact(problem: CharacterLSTM) -> tuple[jax.Array, jax.Array]:
        start = problem.init(key), jnp.zeros((), jnp.int32), key
        gradient, episode = unroll_with_gradient(problem, theta, *start, problem.horizon)
        return gradient, episode.loss / problem.horizon

    return Case(problems, theta, *jax.vmap(exact)(problems), key)


@partial(jax.jit, static_argnums=(0, 1, 2))
def squared_errors(method: Method, unrolls: int, samples: int, case: Case) -> jax.Array:
    """Squared distances of the estimates of single units from the exact gradient, [inputs, samples].

    All units start an episode together and read the same text. Each has its own perturbations, which are the
    same for all inputs, so with a single unroll PES, NRES and full ES are identical. Estimates are summed
    over the windows of the episode, in float32: compared with float64, rounding was less than 1e-4 of the
    squared distance.
    """

    def squared_error(problem: CharacterLSTM, gradient: jax.Array, key: jax.Array) -> jax.Array:
        truncation = problem.horizon // unrolls
        estimator = method.make(problem, truncation=truncation)

        def window(carry: tuple[State, jax.Array], key: jax.Array) -> tuple:
            state, total = carry
            estimate, state, _ = estimator.estimate(case.theta, state, key)
            return (state, total + truncation * estimate), None

        init_key, key = jax.random.split(key)
        start = estimator.init(init_key, case.theta, 0.0), jnp.zeros_like(case.theta)
        (_, total), _ = jax.lax.scan(window, start, jax.random.split(key, unrolls))
        return jnp.sum((total - gradient) ** 2)

    each_input = jax.vmap(squared_error, in_axes=(0, 0, None))
    keys = jax.random.split(jax.random.fold_in(case.key, unrolls), samples)
    errors = jax.lax.map(lambda key: each_input(case.problems, case.gradients, key), keys, batch_size=50)
    return errors.T


@partial(jax.jit, static_argnums=(0, 1))
def predict(method: Method, unrolls: int, case: Case) -> jax.Array:
    """Total variance of one unit in the limit of small sigma, [inputs]."""
    return jax.lax.map(
        lambda each: method.predicted(unrolls, each[0], case.theta, each[1]), (case.problems, case.gradients)
    )


def window_losses(problem: CharacterLSTM, copies: jax.Array) -> jax.Array:
    """Losses of the windows of an episode, [W], each with its own theta: ``copies`` is [W, P]."""
    truncation, key = problem.horizon // len(copies), jax.random.key(0)

    def window(carry: tuple[State, jax.Array], copy: jax.Array) -> tuple:
        state, position = carry
        unrolled = unroll(problem, copy, state, position, key, truncation)
        return (unrolled.state, position + truncation), unrolled.loss

    start = problem.init(key), jnp.zeros((), jnp.int32)
    return jax.lax.scan(window, start, copies)[1]


def es_variance(unrolls: int, problem: CharacterLSTM, theta: jax.Array, gradient: jax.Array) -> jax.Array:
    """Variance of NRES and full ES: ``(P + 1) |gradient|^2`` for any W, since they have one perturbation."""
    del unrolls, problem
    return (theta.size + 1) * jnp.sum(gradient**2)


def plain_variance(unrolls: int, problem: CharacterLSTM, theta: jax.Array, gradient: jax.Array) -> jax.Array:
    """Variance of PES without pairs: ``P sigma^-2 sum_i (sum_{w >= i} L_w)^2``, L_w being a window's loss.

    The other terms do not grow as sigma becomes small.
    """
    del gradient
    losses = window_losses(problem, jnp.tile(theta, (unrolls, 1)))
    return theta.size * jnp.sum(jnp.cumsum(losses[::-1]) ** 2) / SIGMA**2


def pes_variance(unrolls: int, problem: CharacterLSTM, theta: jax.Array, gradient: jax.Array) -> jax.Array:
    """Variance of PES, from the derivatives of all windows with respect to all copies of theta."""
    del gradient
    windows = jnp.arange(unrolls)
    _, pull_back = jax.vjp(partial(window_losses, problem), jnp.tile(theta, (unrolls, 1)))

    def share(window: jax.Array) -> jax.Array:
        (q,) = pull_back(jnp.where(windows >= window, 1.0, 0.0))
        return share_of_variance(q, window)

    return jnp.sum(jax.lax.map(share, windows, batch_size=20))


def share_of_variance(q: jax.Array, i: jax.Array) -> jax.Array:
    """The contribution of row i of q to the total variance of a pair, which is the sum over rows.

    With independent normal perturbations, the (i, i) term of g has the total variance ``(P + 1) |q_ii|^2``,
    and the (i, j) term has ``P |q_ij|^2``; its covariance with the (j, i) term is ``q_ij . q_ji``. For j < i,
    q_ji is q_ii, because no loss before window i depends on theta_i. So the variance is the sum over i of

        P sum_j |q_ij|^2 + |q_ii|^2 + 2 sum_{j < i} q_ij . q_ii

    Args:
      q: row i, the derivatives of the loss of windows i and later with respect to each copy, [W, P].
      i: the row, counted from 0.
    """
    own, before = q[i], jnp.where(jnp.arange(len(q))[:, None] < i, q, 0)
    return q.shape[1] * jnp.sum(q**2) + own @ own + 2 * jnp.sum(before @ own)


def measure(method: Method, unrolls: int, samples: int, case: Case) -> dict[str, np.ndarray]:
    """Normalised total variance of the mean over N particles: measured, its error, and predicted; [inputs].

    Since units are independent, it is the variance of single units divided by their number.
    """
    errors = np.asarray(squared_errors(method, unrolls, samples, case), np.float64)
    norm = np.sum(np.square(case.gradients, dtype=np.float64), axis=1)
    scale = norm * PARTICLES / method.particles
    return {
        "variance": errors.mean(axis=1) / scale,
        "standard_error": errors.std(axis=1) / np.sqrt(samples) / scale,
        "predicted": predict(method, unrolls, case) / scale,
    }


@dataclass(frozen=True)
class Options:
    """Options of this experiment."""

    text: Path | None = None
    """Text file to read; by default one that comes with Python."""


def run(settings: Settings, console: Console) -> Result:
    """Run every method at every number of unrolls on all inputs."""
    every, text = methods(settings.scale), encode(read_text(settings.options.text), ALPHABET)
    cases = [case(inputs(text, seed), np.uint32(seed)) for seed in settings.seeds]

    def work(job: tuple[str, int]) -> list[dict[str, np.ndarray]]:
        name, unrolls = job
        measured = [measure(every[name], unrolls, SAMPLES, case) for case in cases]
        console.print(f"{name}: measured at {unrolls} unrolls", highlight=False)
        return measured

    jobs = [(name, unrolls) for name, method in every.items() for unrolls in method.unrolls]
    jobs.sort(key=lambda job: -job[1])  # the longest first, so that no core is idle for long at the end
    with ThreadPoolExecutor(os.cpu_count()) as threads:  # each job compiles its own program
        measured = dict(zip(jobs, threads.map(work, jobs), strict=True))
    outcomes = {
        f"{name}-{each}": outcome(method.unrolls, [measured[name, w] for w in method.unrolls], number, cases)
        for name, method in every.items()
        for number, each in enumerate(INPUTS)
    }
    return Result(outcomes, verdict(outcomes), checks(outcomes))


def outcome(
    unrolls: tuple[int, ...], measured: list[list[dict[str, np.ndarray]]], number: int, cases: list[Case]
) -> Outcome:
    """The outcome of one method on one input, from measurements ``[unrolls][seeds]`` at a fixed theta."""
    curve = {
        name: np.array([[at_seed[name][number] for at_seed in at_unrolls] for at_unrolls in measured]).T
        for name in measured[0][0]
    }
    return Outcome(
        final_loss=np.array([case.losses[number] for case in cases]),
        theta=np.stack([case.theta for case in cases]),
        curve={"unrolls": np.array(unrolls), **curve},
    )


def growth(outcome: Outcome) -> np.ndarray:
    """Slope of the log variance over the log number of unrolls, [seeds]."""
    fitted = outcome.curve["unrolls"] >= FITTED_FROM
    x, y = np.log(outcome.curve["unrolls"][fitted]), np.log(outcome.curve["variance"][:, fitted])
    return np.polyfit(x, y.T, 1)[0]


def checks(outcomes: dict[str, Outcome]) -> dict[str, tuple[float, float]]:
    """Measured over predicted variance, averaged over unrolls and seeds."""
    return {
        f"measured over predicted variance, {name}": (
            float(np.mean(outcome.curve["variance"] / outcome.curve["predicted"])),
            1.0,
        )
        for name, outcome in outcomes.items()
    }


def verdict(outcomes: dict[str, Outcome]) -> Verdict:
    """Linear growth for independent windows, none for equal ones, and something in between for text."""
    random, repeated, text = (growth(outcomes[f"pes-{each}"]) for each in INPUTS)
    holds = (
        random.min() > 0.8
        and random.max() < 1.2
        and np.abs(repeated).max() < 0.1
        and repeated.max() < text.min()
        and text.max() < random.min()
    )
    return Verdict(
        bool(holds),
        f"from {FITTED_FROM} unrolls on, the variance of PES grows as a power of their number: "
        f"{_span(random)} for random characters (expected: 0.8 to 1.2), {_span(repeated)} for one repeated "
        f"character (expected: -0.1 to 0.1), {_span(text)} for text (expected: between these two)",
    )


def _span(values: np.ndarray) -> str:
    return f"{values.min():.2f} to {values.max():.2f}"


def draw(result: Result, folder: Path) -> Sequence[Path]:
    """Draw variance over unrolls: a panel for each input, and one for PES without antithetic pairs."""
    from matplotlib.axes import Axes

    from meta_train.experiments.drawing import colour
    from meta_train.report.figures import picture

    pairs = PARTICLES / 2
    entries = result.methods["pes-random"].theta.shape[-1]
    unrolls = np.geomspace(1, result.methods["pes-random"].curve["unrolls"][-1])
    independent = (entries * (unrolls + 1) / 2 + 1) / pairs

    def line(axes: Axes, name: str, label: str) -> None:
        curve, color = result.methods[name].curve, colour(name)
        x, y = curve["unrolls"], curve["variance"]
        axes.plot(x, np.median(y, axis=0), marker="o", ms=4, lw=1.5, color=color, label=label)
        axes.fill_between(x, y.min(axis=0), y.max(axis=0), color=color, alpha=0.15, lw=0)
        axes.plot(x, np.median(curve["predicted"], axis=0), ":", lw=1, color="black")

    plain = "pes-plain-random" in result.methods
    path = folder / "variance.png"
    with picture(path, ncols=3 + plain, figsize=(4 * (3 + plain), 4)) as (_, panels):
        for axes, (each, title) in zip(panels, INPUTS.items(), strict=False):
            axes.plot(unrolls, independent, "--", lw=0.8, color="grey", label="independent windows")
            axes.plot(unrolls, independent / unrolls, "-.", lw=0.8, color="grey", label="equal windows")
            for name, label in {"pes": "PES", "nres": "NRES", "full-es": "full ES"}.items():
                if f"{name}-{each}" in result.methods:
                    line(axes, f"{name}-{each}", label)
            axes.plot([], [], ":", lw=1, color="black", label="exact, small sigma")
            axes.set(title=title, ylim=(0.3 * entries / pairs, 3 * independent[-1]))
        if plain:
            for each, title in INPUTS.items():
                line(panels[-1], f"pes-plain-{each}", title)
                curve = result.methods[f"pes-plain-{each}"].curve
                end = curve["unrolls"][-1], np.median(curve["variance"][:, -1])
                below = {"xytext": (0, -18), "textcoords": "offset points", "ha": "right", "va": "top"}
                panels[-1].annotate(title.replace(" ", "\n"), end, fontsize=8, **below)
            panels[-1].set(title="PES without antithetic pairs")
        for axes in panels:
            axes.set(xlabel="unrolls per episode", xscale="log", yscale="log")
        panels[0].set_ylabel(
            f"total variance of the mean, N = {PARTICLES},\nover squared norm of the gradient"
        )
        panels[0].legend(fontsize=8)
    return [path]


EXPERIMENT = Experiment(
    name="variance",
    summary="how the variance of PES grows with the number of unrolls, on random, repeated and real text",
    source="Vicol, Metz, Sohl-Dickstein, ICML 2021, variance of PES; with the sizes of its published code",
    run=run,
    draw=draw,
    protocol=__doc__,
    options=Options,
)
