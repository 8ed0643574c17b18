"""The experiments on real tasks: their problems against other computations, and all of them in miniature."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from inner_tasks import TaskSettings, Training
from inner_tasks.networks import MLP
from inner_tasks.tasks.images import mlp_task
from meta_train.experiments import (
    learned_optimizer,
    many_hyperparameters,
    mnist_schedule,
)
from meta_train.experiments.base import Settings
from meta_train.experiments.many_hyperparameters import SEARCHES, VERSIONS, active, draw_theta
from tests.inner_tasks.tfds_fixture import random_splits, write_tfds
from tests.marks import slow
from tests.meta_train.command import pes_paper

DIGITS = mlp_task("digits", TaskSettings((6,), 16, 5))


def test_the_schedule_is_that_of_the_protocol() -> None:
    """Ten steps on digits against optax's momentum with the schedule written out."""
    optimizer = mnist_schedule.schedule(500)
    theta = optimizer.init_theta(jax.random.key(0), 4)
    np.testing.assert_allclose(theta["log_learning_rate"], [math.log(0.003)], rtol=1e-6)
    np.testing.assert_allclose(theta["log_power"], [math.log(30)], rtol=1e-6)
    theta = {"log_learning_rate": jnp.array([-1.0]), "log_power": jnp.array([1.5])}
    plain = optax.sgd(lambda t: jnp.exp(-1.0) / (1 + t / 500) ** jnp.exp(1.5), momentum=0.9)
    data = DIGITS.load(None)
    params = other = DIGITS.init(jax.random.key(1))
    state, plain_state = optimizer.init(params), plain.init(other)
    gradient = jax.jit(jax.grad(lambda p, key: DIGITS.loss(p, DIGITS.sample(data, key))))
    for key in jax.random.split(jax.random.key(2), 10):
        updates, state = optimizer.update(theta, gradient(params, key), state, params)
        params = optax.apply_updates(params, updates)
        updates, plain_state = plain.update(gradient(other, key), plain_state)
        other = optax.apply_updates(other, updates)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-6), params, other)


def test_the_grid_has_the_edges_of_the_protocol() -> None:
    thetas = mnist_schedule.grid(3)
    expected = [[a, b] for a in (-3, -1.75, -0.5) for b in (-2.2, 0, 2.2)]
    np.testing.assert_allclose(thetas / math.log(10), expected, atol=1e-12)


def test_inactive_units_are_as_good_as_gone() -> None:
    """A network with shares of 1/2 and 1/4 is a smaller one, and a step does not change inactive units."""
    wide, narrow = MLP((8, 8), 10), MLP((4, 2), 10)
    x = jax.random.normal(jax.random.key(0), (3, 5))
    params = wide.init(jax.random.key(1), x)["params"]
    small = {
        "Dense_0": {"kernel": params["Dense_0"]["kernel"][:, :4], "bias": params["Dense_0"]["bias"][:4]},
        "Dense_1": {"kernel": params["Dense_1"]["kernel"][:4, :2], "bias": params["Dense_1"]["bias"][:2]},
        "Dense_2": {"kernel": params["Dense_2"]["kernel"][:2], "bias": params["Dense_2"]["bias"]},
    }
    shares = jnp.array([0.0, math.log(1 / 3)])
    masked = wide.apply({"params": active(params, shares)}, x)
    np.testing.assert_allclose(masked, narrow.apply({"params": small}, x), rtol=1e-5)
    gradient = jax.grad(lambda p: jnp.sum(jnp.sin(wide.apply({"params": active(p, shares)}, x))))(params)
    assert not np.any(gradient["Dense_0"]["kernel"][:, 4:]) and np.any(gradient["Dense_0"]["kernel"][:, :4])


@pytest.mark.parametrize("box", [box for box, _ in SEARCHES.values()], ids=SEARCHES)
def test_points_are_drawn_evenly_from_their_box(box: many_hyperparameters.Box) -> None:
    version = VERSIONS["released"]
    draws = jax.vmap(lambda key: draw_theta(key, box, version))(jax.random.split(jax.random.key(0), 500))
    assert {name: x.shape for name, x in draws.items()} == {
        "log_learning_rate": (500, 12),
        "momentum": (500, 12),
        "share": (500, 5),
    }
    assert sum(x[0].size for x in draws.values()) == 29
    for values, (low, high) in (
        (draws["log_learning_rate"], np.log(box.learning_rate)),
        (jax.nn.sigmoid(draws["momentum"]), box.momentum),
        (jax.nn.sigmoid(draws["share"]), box.share),
    ):
        assert low - 1e-5 <= values.min() and values.max() <= high + 1e-5
        quartiles = np.quantile(values, [0.25, 0.5, 0.75])
        np.testing.assert_allclose(quartiles, low + (high - low) * np.array([0.25, 0.5, 0.75]), rtol=0.06)


@pytest.fixture(scope="module")
def data_dir(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Data sets of random images, as prepared by TFDS."""
    folder = tmp_path_factory.mktemp("tfds")
    for name in ("mnist", "fashion_mnist", "cifar10"):
        write_tfds(name, folder, random_splits(name, train=120))
    return folder


@pytest.fixture
def tiny(monkeypatch: pytest.MonkeyPatch) -> None:
    """Protocols that take seconds; their results mean nothing."""
    monkeypatch.setattr(mnist_schedule, "TRUNCATIONS", (2, 5))
    schedule = mnist_schedule.Protocol((4,), 4, 10, {2: 4, 5: 4}, {2: 50, 5: 25}, 0.1, 3, 1, 2)
    monkeypatch.setitem(mnist_schedule.PROTOCOLS, "small", schedule)
    monkeypatch.setattr(many_hyperparameters, "TRUNCATION", 5)
    monkeypatch.setattr(many_hyperparameters, "RECORDS", 4)
    many = many_hyperparameters.Protocol(4, 4, 10, 4, 1200, 2)
    monkeypatch.setitem(many_hyperparameters.PROTOCOLS, "small", many)
    optimizer = learned_optimizer.Protocol(8, TaskSettings((4,), 8, 10), 5, 4, 20, 1e-2, 2)
    monkeypatch.setitem(learned_optimizer.PROTOCOLS, "small", optimizer)


CASES = [
    slow("mnist-schedule"),
    slow("mnist-schedule --target validation-accuracy"),
    slow("many-hyperparameters --version released"),
    slow("learned-optimizer --optimizer metz2019"),
]
METHODS = {
    "mnist-schedule": {"pes-2", "pes-5", "truncated-es-2", "truncated-es-5"},
    "many-hyperparameters": {"pes", "nres", "truncated-es", *SEARCHES},
    "learned-optimizer": {"pes", "nres", "truncated-es"},
}


@pytest.mark.parametrize("command", CASES)
def test_in_miniature(command: str, tiny: None, data_dir: Path, tmp_path: Path) -> None:
    experiment = command.split()[0]
    ended = pes_paper(command, "--seeds 0 1 --data-dir", data_dir, "--out", tmp_path)
    result = json.loads((tmp_path / "result.json").read_text(), parse_constant=pytest.fail)
    assert ended.code == (0 if result["verdict"]["holds"] else 1), ended.err
    assert result["verdict"]["text"] in ended.out.replace("\n", " ")
    assert set(result["methods"]) == METHODS[experiment]
    for name, method in result["methods"].items():
        curve = method["curve"]
        values = np.array(curve["value"])
        assert values.shape == (2, len(curve["steps"])) and np.isfinite(values).all()
        assert sorted(curve["steps"]) == curve["steps"]
        final = values.min(axis=1) if "many" in command else values[:, -1]
        np.testing.assert_allclose(method["final_loss"], final, rtol=1e-6)
        assert name in SEARCHES or curve["steps"][0] == 0
    if "many" in command:  # all have taken the same number of inner steps
        assert len({method["curve"]["steps"][-1] for method in result["methods"].values()}) == 1
    picture = tmp_path / f"{experiment.replace('-', '_')}.png"
    assert picture.stat().st_size > 10_000


@pytest.mark.slow
def test_a_stopped_experiment_goes_on(
    tiny: None, data_dir: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Stopped twice, once in the middle of a seed, it gives the result of an uninterrupted one."""
    from meta_train.experiments import learning

    whole, parts = tmp_path / "whole", tmp_path / "parts"
    flags = ("learned-optimizer --seeds 3 4 --data-dir", data_dir)
    pes_paper(*flags, "--out", whole)
    monkeypatch.setattr(learning, "SAVE_EVERY_SECONDS", 0.0)
    loop, left = learning.outer_loop, [30]

    def stopping(*args: Any) -> Any:
        for update in loop(*args):
            left[0] -= 1
            if left[0] == 0:
                raise KeyboardInterrupt
            yield update

    monkeypatch.setattr(learning, "outer_loop", stopping)
    assert pes_paper(*flags, "--out", parts).code == 130
    assert (parts / "paths" / "pes" / "4").exists() and not (parts / "result.json").exists()
    left[0] = 25
    assert pes_paper(*flags, "--resume", parts).code == 130
    left[0] = -1
    pes_paper(*flags, "--resume", parts)
    assert (parts / "result.json").read_bytes() == (whole / "result.json").read_bytes()
    complete = pes_paper(*flags, "--resume", parts)
    assert complete.code == 2 and "is complete: it already has a result.json" in complete.err
    other = pes_paper("learned-optimizer --seeds 3 --data-dir", data_dir, "--resume", parts)
    assert other.code == 2 and "seeds [3, 4]" in other.err and "seeds [3]," in other.err
    nowhere = pes_paper(*flags, "--resume", tmp_path)
    assert nowhere.code == 2 and "is not the folder of an experiment" in nowhere.err


def test_losses_of_thetas_are_those_of_whole_episodes(tmp_path: Path) -> None:
    from rich.console import Console

    from meta_train.experiments.learning import mean_losses
    from meta_train.report.evaluation import evaluation_key

    problem = Training(DIGITS.load(None), DIGITS, mnist_schedule.schedule(5), 5)
    thetas = {"log_learning_rate": np.float32([[-2], [-1], [5]]), "log_power": np.float32([[0], [0], [-9]])}
    flat = np.concatenate([thetas["log_learning_rate"], thetas["log_power"]], axis=1)
    like = {name: x[0] for name, x in thetas.items()}
    settings = Settings("small", (0,), folder=tmp_path, devices=2)
    options: dict[str, Any] = {"label": "x", "console": Console(quiet=True)}
    found = mean_losses(problem, flat, like, 2, settings=settings, **options)
    for number, value in enumerate(found):
        losses = []
        for run in range(2):
            init_key, data_key = jax.random.split(evaluation_key(run))
            state = problem.init(init_key)
            theta = {name: x[number] for name, x in thetas.items()}
            for key in jax.random.split(data_key, 5):
                state, loss = problem.step(theta, state, key)
                losses.append(min(float(loss), DIGITS.max_loss) if np.isfinite(loss) else DIGITS.max_loss)
        assert value == pytest.approx(np.mean(losses), rel=1e-5)
    assert found[2] > 0.9 * DIGITS.max_loss > found[1]  # it diverges and is clipped
    again = mean_losses(problem, flat, like, 2, settings=settings._replace(devices=1), **options)  # read
    np.testing.assert_array_equal(again, found)
