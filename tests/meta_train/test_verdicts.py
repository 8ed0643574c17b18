"""The verdicts of the experiments, on results whose statistics are known."""

from __future__ import annotations

import numpy as np
import pytest
from scipy import stats

from meta_train.experiments import control, learned_optimizer, many_hyperparameters, mnist_schedule
from meta_train.experiments.base import Claim, Outcome, Verdict, difference, judged


def around(mean: float, spread: float, seeds: int = 8) -> np.ndarray:
    """Values with exactly this mean and standard deviation."""
    values = np.linspace(-1, 1, seeds)
    return mean + spread * values / values.std(ddof=1)


def ended(final: np.ndarray, **curve: np.ndarray) -> Outcome:
    return Outcome(final, np.zeros((final.size, 1)), curve)


def test_difference_is_that_of_welch():
    high, low = np.array([3.0, 5.0, 4.5, 6.0]), np.array([1.0, 2.0, 1.1])
    found = difference(high, low)
    expected = stats.ttest_ind(high, low, equal_var=False).statistic
    np.testing.assert_allclose(found.mean / found.error, expected, rtol=1e-12)


@pytest.mark.parametrize("gap, is_clear", [(2.9, False), (3.1, True), (-3.1, False)])
def test_a_difference_counts_from_three_standard_errors(gap: float, is_clear: bool):
    error = np.sqrt(2 / 8)  # of the difference of two means of eight values with unit variance
    found = difference(around(gap * error, 1), around(0, 1))
    assert found.is_clear is is_clear and f"{gap:.1f} standard errors" in str(found)


def test_a_single_seed_shows_nothing():
    assert not difference(np.array([5.0]), np.array([1.0])).is_clear


@pytest.mark.parametrize(
    "holds, word",
    [((True, True), "holds"), ((True, False), "holds in part"), ((False, False), "does not hold")],
)
def test_the_word_for_parts(holds: tuple[bool, bool], word: str):
    verdict = judged("measured", *(Claim(own, f"part {i}") for i, own in enumerate(holds)))
    assert verdict.word == word and verdict.holds == all(holds)
    assert f"part 1: {'holds' if holds[1] else 'does not hold'}" in verdict.text
    assert Verdict(**verdict._asdict()) == verdict


@pytest.mark.parametrize("full, word", [(200, "holds"), (315, "holds in part")])
def test_control(full: float, word: str):
    """With a spread of 30 over twelve seeds, 5 of reward are less than three standard errors."""
    steps = np.array([0, 10, 20])

    def learned(reward: float) -> Outcome:
        final = around(reward, 30, 12)
        return ended(final, steps=steps, loss=np.outer(final, [0, 0.5, 1]))

    outcomes = {"pes": learned(320), "full-es": learned(full), "truncated-es": learned(30)}
    verdict = control.verdict(outcomes)
    assert verdict.word == word
    assert f"PES above full ES by {320 - full} ± 12" in verdict.text
    # Averaged over the way both are half as high.
    assert f"on the way, above full ES by {(320 - full) / 2:.3g} ± 6.1" in verdict.text


@pytest.mark.parametrize("spread, word", [(0.1, "holds"), (0.011, "holds in part")])
def test_learned_optimizer(spread: float, word: str):
    losses = {"pes": around(1.8, 0.01), "nres": around(1.8, 0.01), "truncated-es": around(2, spread)}
    verdict = learned_optimizer.verdict({name: ended(own) for name, own in losses.items()}, 1.9)
    assert verdict.word == word
    ratio = 2 * np.log(spread / 0.01)
    assert f"above zero by {ratio:.3g} ± {np.sqrt(4 / 7):.2g}" in verdict.text


def test_a_single_initialisation_has_no_spread():
    losses = {"pes": np.array([1.8]), "nres": np.array([1.8]), "truncated-es": np.array([2.0])}
    verdict = learned_optimizer.verdict({name: ended(own) for name, own in losses.items()}, 1.9)
    assert verdict.word == "does not hold"


@pytest.mark.parametrize("search, word", [(200, "holds"), (101, "holds in part")])
def test_many_hyperparameters_compares_with_the_best_search(search: float, word: str):
    losses = {"pes": 100, "nres": 100, "truncated-es": 120}
    losses |= {name: 300 - i for i, name in enumerate(many_hyperparameters.SEARCHES)}
    losses |= {"random-search-ends": search}
    verdict = many_hyperparameters.verdict({name: ended(around(own, 5)) for name, own in losses.items()})
    assert verdict.word == word
    assert f"random search, box of the ends above PES by {search - 100}" in verdict.text


@pytest.mark.parametrize("target", mnist_schedule.TARGETS)
@pytest.mark.parametrize("change, word", [("none", "holds"), ("truncated", "holds in part")])
def test_mnist_schedule(target: mnist_schedule.TargetName, change: str, word: str):
    """PES is in the basin; truncated ES is far outside, or so near its edge that it does not count."""
    goal = mnist_schedule.TARGETS[target]
    best = 0.5
    inside, edge = (best + goal.edge(best)) / 2, goal.edge(best)
    away = goal.sign * (0.0005 if change == "truncated" else 0.1)
    outcomes = {}
    for truncation in mnist_schedule.TRUNCATIONS:
        outcomes[f"pes-{truncation}"] = ended(around(inside, 1e-4, 3))
        outcomes[f"truncated-es-{truncation}"] = ended(around(edge + away, 1e-3, 3))
    verdict = mnist_schedule.verdict(outcomes, best, goal)
    assert verdict.word == word
    assert "PES with K = 10 in the basin in 3 of 3: holds" in verdict.text
