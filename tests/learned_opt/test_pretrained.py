"""The optimizers that come with the package: complete, documented, and useful without settings."""

from __future__ import annotations

import json
from pathlib import Path

import jax
import numpy as np
import optax
import pytest
import yaml

import learned_opt
from inner_tasks import TaskDistribution, Training, find_task
from learned_opt._src.pretrained import find_optimizer
from meta_train.report.evaluation import Contestant, run
from tests.learned_opt.contract import PRETRAINED
from tests.learned_opt.plain import RULES

ROOT = Path(learned_opt.__file__).parents[1]
NAMES = learned_opt.pretrained_names()


def test_an_unknown_name_is_refused_with_a_hint():
    close = NAMES[0][:-1] + "x"
    with pytest.raises(
        learned_opt.UserError, match=f"no pretrained optimizer '{close}'.*did you mean '{NAMES[0]}'"
    ):
        learned_opt.pretrained(close)


@pytest.mark.parametrize("name", NAMES)
def test_each_has_a_card_a_log_and_the_configuration_that_made_it(name):
    path = learned_opt.pretrained_path(name)
    metadata = learned_opt.read(path).metadata
    made = metadata["meta_training"]
    log = [json.loads(line) for line in (path.parent / "metrics.jsonl").read_text().splitlines()]
    config = yaml.safe_load((path.parent / "config.yaml").read_text())
    assert log[-1]["update"] == made["updates"] == config["updates"]
    for part in ("task", "estimator", "outer", "seed"):
        assert made[part] == config[part]
    judged = {each["task"]: each["steps"] for each in metadata["comparisons"]}
    own = find_task(made["task"]["name"])
    if path.parent.name == "muon-mlp-general-tasks":
        assert not judged  # docs/pretrained.md says so
    elif isinstance(own.build(own.settings), TaskDistribution):
        held_out = find_task("held-out")
        members = held_out.build(held_out.settings).members
        steps = {member: task.horizon for member, task in members.items()}
        assert len(judged) >= 10 and judged.items() <= steps.items()
    else:
        assert judged == {made["task"]["name"]: made["task"]["horizon"]}
    assert f"`{name}`" in (ROOT / "docs" / "pretrained.md").read_text()


def test_one_beats_tuned_adam_on_most_held_out_tasks_and_fails_on_none():
    """According to its card, which ``learned-opt evaluate --record`` wrote."""
    comparisons = learned_opt.read(learned_opt.pretrained_path("relative-mlp-small-tasks")).metadata[
        "comparisons"
    ]
    assert sum(each["own"]["ratio_to_adam"] < 1 for each in comparisons) >= 6
    assert all(len(each["tuned"]) == 1 and each["seeds"] == 4 for each in comparisons)
    assert all(each["own"]["final_loss"] is not None for each in comparisons)


@pytest.mark.parametrize("name", NAMES)
def test_each_card_is_described_in_sentences(name):
    """Cards older than the scheduled rivals, too."""
    artifact = learned_opt.read(learned_opt.pretrained_path(name))
    for number, each in enumerate(artifact.metadata["comparisons"], 1):
        said = learned_opt.describe(artifact).claimed[f"comparison {number}"]
        assert said.startswith(f"{each['task']}, {each['steps']} steps, {each['seeds']} seeds: mean ")


@pytest.mark.parametrize("name", PRETRAINED)
def test_each_trains_a_small_network_as_it_is(name):
    registration = find_task("small-tasks")
    distribution = registration.build(registration.settings)
    assert isinstance(distribution, TaskDistribution)
    task = next(iter(distribution.members.values()))
    artifact = learned_opt.read(learned_opt.pretrained_path(name))
    optimizer = learned_opt.get_architecture(artifact.architecture)
    training = Training(task.load(None), task, optimizer, 100)
    runs = run(training, Contestant(optimizer, artifact.theta), seeds=2, devices=1).runs
    assert (runs.losses[:, 0] > 2).all()
    assert (runs.final_loss < 0.3).all()


@pytest.mark.parametrize("name", NAMES)
def test_each_gives_the_updates_of_its_formula(name):
    """Files of format version 1, over three steps, against the formula in float64 NumPy."""
    artifact, tx = learned_opt.read(learned_opt.pretrained_path(name)), learned_opt.pretrained(name)
    assert artifact.metadata["format_version"] == 1
    theta = jax.tree.map(lambda w: np.asarray(w, np.float64), artifact.theta)
    param = 0.3 * jax.random.normal(jax.random.key(0), (7, 5)) + 0.1
    state, update, gradients = tx.init(param), jax.jit(tx.update), []
    for count, key in enumerate(jax.random.split(jax.random.key(1), 3)):
        gradient = jax.random.normal(key, param.shape)
        gradients.append(np.asarray(gradient, np.float64))
        found, state = update(gradient, state, param)
        expected = RULES[artifact.architecture](theta, gradients, np.asarray(param, np.float64), count)
        assert np.linalg.norm(found - expected) < 1e-4 * np.linalg.norm(expected)


def test_pretrained_is_what_load_gives():
    params = {"w": jax.random.normal(jax.random.key(0), (5, 4))}
    for name in NAMES:
        path = find_optimizer(name)
        assert path == learned_opt.pretrained_path(name) == find_optimizer(str(path))
        own, loaded = learned_opt.pretrained(name), learned_opt.load(path)
        assert isinstance(own, optax.GradientTransformationExtraArgs)
        a, b = (tx.update(params, tx.init(params), params)[0] for tx in (own, loaded))
        np.testing.assert_array_equal(a["w"], b["w"])
    assert find_optimizer("no such name") is None
