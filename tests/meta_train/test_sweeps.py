"""The sweep files: they are valid, and drawn configurations run as with a W&B agent."""

from __future__ import annotations

import signal
import warnings
from collections import Counter
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import yaml

from meta_train.commands.meta_train import parse
from meta_train.run import tracking
from meta_train.run.config import by_flag, default_config
from tests.meta_train.command import TINY, Run, at_update, meta_train, words

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


def agent_flags(values: dict[str, Any], form: str = "args") -> list[str]:
    """The flags that `wandb agent` writes for `${form}` in the command of a sweep, by W&B's code."""
    from wandb.sdk.launch.sweeps.utils import create_sweep_command_args

    return create_sweep_command_args({"args": {k: {"value": v} for k, v in values.items()}})[form]


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
def test_the_flags_are_those_of_meta_train(file: Path):
    for values in draw(file, 3):
        flags = agent_flags(values)
        settings = by_flag(parse(flags).settings)
        assert {name: settings[name] for name in values} == values
        for name in CHOICES:
            assert f"--{name}={values[name]:d}" in flags  # 4, not 4.0


VALUES = {"task.hidden": [64, 64], "estimator.analytic": True, "estimator.sigma": 1e-05}


@pytest.mark.parametrize("form", ["args", "args_no_equals", "args_no_boolean_flags"])
def test_forms_of_flags(form: str):
    settings = parse(agent_flags(VALUES, form)).settings
    assert settings.task.hidden == (64, 64)
    assert settings.estimator == replace(default_config("digits-mlp").estimator, sigma=1e-05, analytic=True)


def test_a_switch_that_is_off_overrides_a_file(tmp_path: Path):
    (tmp_path / "on.yaml").write_text("estimator: {analytic: true}")
    file = ["--config", str(tmp_path / "on.yaml")]
    assert parse(file).settings.estimator.analytic
    assert not parse([*file, *agent_flags({"estimator.analytic": False})]).settings.estimator.analytic


@pytest.mark.parametrize("form", ["args", "args_no_equals"])
@pytest.mark.parametrize("task", ["digits-mlp", "general-tasks", "cifar10-mlp"])
def test_the_whole_configuration_is_parsed_to_itself(task: str, form: str):
    config = replace(default_config(task), seed=3, data_dir=Path("data"))
    flags = agent_flags({"_wandb": {"t": {"1": [5, 53]}}, **by_flag(config)}, form)
    assert parse(flags).settings == config


def test_a_wrong_value_is_reported_as_it_was_given():
    outcome = meta_train(*agent_flags({"estimator.analytic": "perhaps"}))
    assert outcome.code == 2
    assert "perhaps" in outcome.err


@pytest.fixture
def handed_out(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The flags of a run with the settings of ``tiny_run`` that W&B hands out with the id `r1`."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("WANDB_RUN_ID", "r1")
    monkeypatch.setattr(tracking, "start_tracking", lambda *_, **__: tracking.Tracker("W&B: a test"))
    return words(TINY, "--updates 3 --checkpoint-every 2 --devices 2 --wandb offline")


def test_a_preempted_run_goes_on_in_its_folder(
    handed_out: list[str], tiny_run: Run, no_comparing: None, monkeypatch: pytest.MonkeyPatch
):
    run = Path("runs/digits-mlp-r1")
    terminated = []
    before = signal.signal(signal.SIGTERM, lambda *_: terminated.append("by a second SIGTERM"))
    with monkeypatch.context() as patch, at_update(2, lambda: signal.raise_signal(signal.SIGTERM)):
        patch.setattr(tracking.Tracker, "finish", lambda *_: signal.raise_signal(signal.SIGTERM))
        outcome = meta_train(*handed_out)
    signal.signal(signal.SIGTERM, before)
    assert not terminated
    assert outcome.code == 143, outcome.err
    settings = parse(["--resume", str(run)]).settings
    outcome = meta_train(*agent_flags({"_wandb": {}, **by_flag(settings)}))
    assert outcome.code == 0, outcome.err
    assert f"resumed {run} at update 2" in outcome.err
    assert (run / "optimizer.safetensors").read_bytes() == tiny_run.optimizer
    assert list(Path("runs").iterdir()) == [run]


def test_a_finished_run_that_is_handed_out_again_reports_again(handed_out: list[str], no_comparing: None):
    picture = Path("runs/digits-mlp-r1/report/learning_rates.png")
    assert meta_train(*handed_out).code == 0
    picture.unlink()
    outcome = meta_train(*handed_out)
    assert outcome.code == 0, outcome.err
    assert picture.exists()
    outcome = meta_train(*handed_out, "--seed=1")
    assert outcome.code == 2
    assert "seed (was 0, now 1)" in outcome.err


def test_the_folder_of_a_run_has_its_id(handed_out: list[str], monkeypatch: pytest.MonkeyPatch):
    assert parse(handed_out).run_dir == Path("runs/digits-mlp-r1")
    assert parse([*handed_out, "--run-dir=x"]).run_dir == Path("x")
    assert parse([*handed_out, "--wandb=disabled"]).run_dir is None
    monkeypatch.setenv("WANDB_RUN_ID", "../r2")
    assert parse(handed_out).run_dir == Path("runs/digits-mlp-..%2Fr2")
