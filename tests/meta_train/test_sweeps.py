"""The sweep files: they are valid, and drawn configurations run as with a W&B agent."""

from __future__ import annotations

import json
import warnings
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import yaml

from tests.meta_train.command import meta_train

with warnings.catch_warnings():
    warnings.simplefilter("ignore")  # sweeps 0.2.0 was written for pydantic 1
    sweeps = pytest.importorskip("sweeps")
    jsonschema = pytest.importorskip("jsonschema")

FOLDER = Path(__file__).parents[2] / "sweeps"
FILES = sorted(FOLDER.glob("*.yaml"))
RANGES = {"estimator.sigma": (0.003, 0.1), "outer.learning-rate": (1e-3, 5e-2)}
CHOICES = {"estimator.truncation": {5, 10, 20, 50}, "estimator.particles": {4, 8, 16, 32}}

every_file = pytest.mark.parametrize("file", FILES, ids=lambda file: file.stem)


def load(file: Path) -> dict[str, Any]:
    return yaml.safe_load(file.read_text())


def draw(file: Path, count: int, seed: int = 0) -> list[dict[str, Any]]:
    """Draw configurations one after another, each with the results of the previous ones."""
    np.random.seed(seed)  # sweeps draws from NumPy's global generator
    config, runs, drawn = sweeps.SweepConfig(load(file)), [], []
    for _ in range(count):
        run = sweeps.next_run(config, runs)
        drawn.append({name: entry["value"] for name, entry in run.config.items()})
        # A fake result for the Bayesian search to learn from.
        run.state = sweeps.RunState.finished
        run.summary_metrics = {"ratio_to_best": abs(np.log(drawn[-1]["estimator.sigma"] / 0.03))}
        runs.append(run)
    return drawn


def agent_command(file: Path, values: dict[str, Any]) -> list[str]:
    """The command line that `wandb agent` builds from a drawn configuration, by W&B's code."""
    from wandb.sdk.launch.sweeps.utils import create_sweep_command, create_sweep_command_args

    args = create_sweep_command_args({"args": {k: {"value": v} for k, v in values.items()}})
    macros = {**args, "env": ["/usr/bin/env"], "interpreter": ["python"]}
    command = []
    for word in create_sweep_command(load(file)["command"]):
        command += macros[word[2:-1]] if word.startswith("${") else [word]
    return command


def test_one_random_and_one_bayesian_sweep():
    assert [load(file)["method"] for file in FILES] == ["bayes", "random"]


@every_file
def test_file_is_valid_and_minimises_the_ratio(file: Path):
    config = sweeps.SweepConfig(load(file))
    assert config["metric"]["name"] == "ratio_to_best"
    assert config["metric"]["goal"] == "minimize"
    assert set(config["parameters"]) == RANGES.keys() | CHOICES.keys()


@every_file
@pytest.mark.parametrize("typo", ["metod", "distribution", "parameter"])
def test_validation_notices_typos(file: Path, typo: str):
    config = load(file)
    if typo == "metod":
        config["metod"] = config.pop("method")
    elif typo == "distribution":
        config["parameters"]["estimator.sigma"]["distribution"] = "log_uniform_value"
    else:
        config["parameters"]["estimator.sigma"]["maximum"] = 0.1
    with pytest.raises(jsonschema.ValidationError):
        sweeps.SweepConfig(config)


@every_file
def test_draws_lie_in_their_ranges_and_differ(file: Path):
    drawn = draw(file, 12)
    for values in drawn:
        assert values.keys() == RANGES.keys() | CHOICES.keys()
        for name, (low, high) in RANGES.items():
            assert low <= values[name] <= high
        for name, choices in CHOICES.items():
            assert values[name] in choices
    for name in RANGES:
        assert len({values[name] for values in drawn}) > 6


def test_random_draws_are_uniform_in_the_logarithm():
    file = FOLDER / "random.yaml"
    drawn = draw(file, 400)
    for name, (low, high) in RANGES.items():
        share = np.mean([values[name] < np.sqrt(low * high) for values in drawn])
        assert abs(share - 0.5) < 0.1  # four standard errors of 400 draws
    for name, choices in CHOICES.items():
        assert Counter(values[name] for values in drawn).keys() == choices


@every_file
def test_agent_builds_the_flags_of_meta_train(file: Path):
    for values in draw(file, 3):
        command = agent_command(file, values)
        assert command[:2] == ["/usr/bin/env", "meta-train"]
        flags = dict(word.removeprefix("--").split("=") for word in command[2:])
        assert {name: float(text) for name, text in flags.items()} == values
        for name in CHOICES:
            assert flags[name].isdecimal()  # 4, not 4.0


@pytest.mark.slow
@every_file
def test_drawn_configurations_run(file: Path, tmp_path: Path, no_comparing: None):
    """Through the command line, like the agent, but without the comparison at the end."""
    (values,) = draw(file, 1, seed=1)
    flags = ["--task", "digits-mlp", "--updates", "2", "--wandb", "disabled"]
    outcome = meta_train(*agent_command(file, values)[2:], *flags, "--run-dir", tmp_path / "run")
    assert outcome.code == 0, outcome.err
    lines = (tmp_path / "run" / "metrics.jsonl").read_text().splitlines()
    assert len(lines) == 2
    assert all(np.isfinite(json.loads(line)["loss"]) for line in lines)
    assert (tmp_path / "run" / "optimizer.safetensors").is_file()
    resolved = yaml.safe_load((tmp_path / "run" / "config.yaml").read_text())
    for name, value in values.items():
        section, setting = name.replace("-", "_").split(".")
        assert resolved[section][setting] == value
