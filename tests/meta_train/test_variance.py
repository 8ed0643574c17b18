"""The experiment on the variance of PES: its problem, its theory, its inputs and its verdict."""

from __future__ import annotations

from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from inner_tasks.datasets.text import encode
from inner_tasks.problems.character_lstm import CharacterLSTM
from learned_opt import UserError
from meta_train.experiments import variance
from meta_train.experiments.base import Outcome, Result
from tests.marks import slow

METHODS = variance.methods("paper")
TEXT = np.array([0, 2, 1, 3, 3, 0, 1, 2, 0, 0, 3, 1, 2], np.int32)


def reference_loss(theta: np.ndarray, text: np.ndarray, alphabet: int) -> float:
    """The summed loss of an LSTM with 5 units, reimplemented in NumPy."""
    # Output bias and weights, embedding, recurrent bias and weights of gates f, g, i, o, input weights.
    shapes = [(alphabet,), (5, alphabet), (alphabet, 5)] + [(5,), (5, 5)] * 4 + [(5, 5)] * 4
    ends = np.cumsum([np.prod(shape) for shape in shapes])
    parts = [part.reshape(shape) for part, shape in zip(np.split(theta, ends[:-1]), shapes, strict=True)]
    output_bias, output, embedding, *gates = parts
    assert ends[-1] == theta.size

    def sigmoid(x):
        return 1 / (1 + np.exp(-x))

    c = h = np.zeros(5)
    total = 0.0
    for character, following in zip(text[:-1], text[1:], strict=True):
        x = embedding[character]
        f, g, i, o = (gates[2 * n] + h @ gates[2 * n + 1] + x @ gates[8 + n] for n in range(4))
        c = sigmoid(f) * c + sigmoid(i) * np.tanh(g)
        h = sigmoid(o) * np.tanh(c)
        logits = h @ output + output_bias
        total += np.log(np.sum(np.exp(logits))) - logits[following]
    return total


@pytest.fixture(scope="module")
def case() -> variance.Case:
    """Twelve steps of a text and of a repeated character, with weights large enough for a memory."""

    @jax.jit
    def make(texts: jax.Array, key: jax.Array) -> variance.Case:
        problems = CharacterLSTM(texts, 4)
        theta = 4 * CharacterLSTM(texts[0], 4).init_theta(key)
        theta += 0.3 * jax.random.normal(key, theta.shape)

        def loss(problem, theta):
            return variance.window_losses(problem, theta[None])[0]

        losses, gradients = jax.vmap(jax.value_and_grad(loss, argnums=1), in_axes=(0, None))(problems, theta)
        return variance.Case(problems, theta, gradients, losses / 12, key)

    return make(np.stack([TEXT, np.zeros_like(TEXT)]), jax.random.key(2))


def test_the_network_and_its_gradient_are_those_of_an_lstm_written_with_numpy(case):
    theta = np.asarray(case.theta, np.float64)
    assert case.losses[0] == pytest.approx(reference_loss(theta, TEXT, 4) / 12, rel=1e-5)
    differences = [
        (reference_loss(theta + step, TEXT, 4) - reference_loss(theta - step, TEXT, 4)) / 2e-5
        for step in 1e-5 * np.eye(theta.size)
    ]
    np.testing.assert_allclose(case.gradients[0], differences, atol=1e-4)


def test_the_formula_of_the_variance_is_that_of_its_definition():
    """``g = sum_ij e_i (e_j . q_ij)``, sampled, with random derivatives."""
    windows, entries, samples = 4, 3, 400_000
    rng = np.random.default_rng(0)
    p = (1 + rng.standard_normal((windows, windows, entries))) * np.tri(windows)[..., None]
    q = np.array([[p[max(i, j) :, j].sum(axis=0) for j in range(windows)] for i in range(windows)])

    e = rng.standard_normal((samples, windows, entries))
    g = np.einsum("nia,njb,ijb->na", e, e, q, optimize=True)
    squared_errors = np.sum((g - p.sum(axis=(0, 1))) ** 2, axis=1)
    measured, error = squared_errors.mean(), squared_errors.std() / samples**0.5

    def predicted(q):
        return sum(float(variance.share_of_variance(jnp.asarray(row), i)) for i, row in enumerate(q))

    assert error < 0.01 * measured
    assert abs(measured - predicted(q)) < 3 * error
    # Without the covariance of the terms ij and ji, and with each perturbation affecting earlier losses too.
    uncorrelated = entries * np.sum(q**2) + np.sum(np.einsum("iia->ia", q) ** 2)
    everything = np.broadcast_to(p.sum(axis=0), q.shape)
    assert abs(measured - uncorrelated) > 10 * error
    assert abs(measured - predicted(everything)) > 10 * error


@pytest.mark.parametrize("name", ["pes", slow("pes-plain")])
def test_estimators_have_the_variance_that_theory_predicts(name, case):
    """For four windows of three steps."""
    measured = variance.measure(METHODS[name], 4, 10_000, case)

    assert np.all(measured["standard_error"] < 0.02 * measured["variance"])
    assert np.all(abs(measured["variance"] - measured["predicted"]) < 3 * measured["standard_error"])


def test_memory_shows_in_the_predicted_variance(case):
    """So the test above can distinguish the formula from that of a network without memory."""
    problem = CharacterLSTM(case.problems.text[0], 4)
    copies = jnp.tile(case.theta, (4, 1))
    jacobian = jax.jit(jax.jacrev(variance.window_losses, argnums=1))(problem, copies)
    own = jnp.sum(jnp.einsum("wwp->wp", jacobian) ** 2, axis=1)
    without_memory = jnp.sum((case.theta.size * jnp.arange(1, 5) + 1) * own)

    predicted = variance.predict(METHODS["pes"], 4, case)[0]

    assert abs(predicted - without_memory) > 0.1 * predicted


def test_characters_become_numbers_by_frequency():
    np.testing.assert_array_equal(encode("abcbcc", variance.ALPHABET), [2, 1, 0, 1, 0, 0])
    codes = encode("".join(chr(100 + n) * (70 - n) for n in range(70)), variance.ALPHABET)
    assert list(np.unique(codes)) == list(range(50))
    assert np.sum(codes == 49) == sum(70 - n for n in range(49, 70))


def test_inputs_are_random_repeated_and_a_stretch_of_the_text():
    text = np.arange(5000, dtype=np.int32)
    random, repeated, stretch = variance.inputs(text, seed=3)

    assert len(random) == len(repeated) == len(stretch) == 1001
    assert random.min() == 0 and random.max() == 49
    np.testing.assert_array_equal(stretch, stretch[0] + np.arange(1001))
    assert np.all(repeated == stretch[0])
    assert variance.inputs(text, seed=4)[2][0] != stretch[0]


def test_a_text_of_ones_own_is_read(tmp_path):
    path = tmp_path / "text"
    path.write_text("Zürich,\n\t lake " * 200, "utf-8")
    assert variance.read_text(path) == ("Zürich, lake " * 200).strip()
    assert len(variance.read_text(None)) > 100_000


@pytest.mark.parametrize(
    "content, expected",
    [
        (None, "No such file"),
        (b"\xff" * 2000, r"not UTF-8 \(byte 0\)"),
        (b"short" + b" " * 2000, "has 5 characters .*, but at least 1001"),
    ],
)
def test_a_text_that_cannot_be_used_is_refused(content, expected, tmp_path):
    path = tmp_path / "text"
    if content is not None:
        path.write_bytes(content)
    with pytest.raises(UserError, match=f"{expected}.*--text"):
        variance.read_text(path)


def outcomes(**slopes: float) -> dict[str, Outcome]:
    """Fake outcomes in which variances grow as these powers of the number of unrolls."""
    found = {}
    for name, method in METHODS.items():
        unrolls = np.array(method.unrolls)
        for each in variance.INPUTS:
            grown = np.stack([2.0 * unrolls ** slopes[each]] * 2)
            curve = {"unrolls": unrolls, "variance": grown, "predicted": grown, "standard_error": 0.1 * grown}
            found[f"{name}-{each}"] = Outcome(np.ones(2), np.ones((2, 770)), curve)
    return found


@pytest.mark.parametrize(
    "slopes, holds",
    [
        ({"random": 0.97, "repeated": -0.02, "text": 0.6}, True),
        ({"random": 0.7, "repeated": -0.02, "text": 0.6}, False),
        ({"random": 0.97, "repeated": 0.2, "text": 0.6}, False),
        ({"random": 0.97, "repeated": -0.02, "text": 1.0}, False),
    ],
)
def test_the_verdict_is_on_the_slopes(slopes, holds):
    verdict = variance.verdict(outcomes(**slopes))
    assert verdict.holds is holds
    assert all(f"{slope:.2f} to {slope:.2f} for" in verdict.text for slope in slopes.values())


def test_the_picture_is_drawn(tmp_path: Path):
    found = outcomes(random=0.97, repeated=-0.02, text=0.6)
    (path,) = variance.draw(Result(found, variance.verdict(found)), tmp_path)
    assert path.stat().st_size > 10_000
