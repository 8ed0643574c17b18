"""Invalid arguments and configuration files."""

from __future__ import annotations

import dataclasses
import os
from pathlib import Path

import pytest

from inner_tasks import Registration, Task, TaskSettings, task
from tests.meta_train.command import (
    Run,
    meta_train,
    start,
    with_memory,
)
from tests.meta_train.failures.messages import check

# Errors that the arguments alone show: the words of the message, and further words.
ARGUMENTS: dict[str, tuple[str, ...]] = {
    "--task digit-mlp": ("unknown task", "available: digits-mlp, mnist-mlp", "did you mean 'digits-mlp'?"),
    "--optimizer inner_tasks:rule": ("has no 'rule'", "optimizer 'inner_tasks:rule'"),
    "--optimizer inner_tasks:OBJECTIVES": ("is not a function that returns a LearnedOptimizer",),
    "--estimator inner_tasks:Task": ("is not a Method", "estimator 'inner_tasks:Task'"),
    "--task nowhere:digits": ("cannot be imported", "task 'nowhere:digits'", "No module named 'nowhere'"),
    "--estimatr.sigma 0.1": ("Unrecognized options", "--estimatr.sigma", "--estimator.sigma"),
    "--updates many": ("Error parsing", "--updates"),
    "--updates": ("Missing argument", "--updates"),
    "--config": ("Missing argument", "--config"),
    "--resume=": ("--resume is empty; give a path",),
    "--config=": ("is empty; give a path", "--config"),
    "--optimizer lstm": ("unknown optimizer", "'lstm'", "available: mlp"),
    "--estimator reinforce": ("unknown estimator", "'reinforce'", "available: pes"),
    "--updates 0": ("it must be at least 1", "--updates is 0"),
    "--checkpoint-every 0": ("it must be at least 1", "--checkpoint-every is 0"),
    "--chunk 0": ("it must be at least 1", "--chunk is 0"),
    "--task.batch-size 0": ("it must be at least 1", "--task.batch-size is 0"),
    "--task.horizon 0": ("it must be at least 1", "--task.horizon is 0"),
    "--task.hidden 32 0": ("it must be at least 1", "--task.hidden is 0"),
    "--evaluation.steps 0": ("it must be at least 1", "--evaluation.steps is 0"),
    "--evaluation.seeds 0": ("it must be at least 1", "--evaluation.seeds is 0"),
    "--evaluation.learning-rates 0": ("it must be at least 1", "--evaluation.learning-rates is 0"),
    "--devices 0": ("it must be at least 1", "--devices is 0"),
    "--devices 8": ("but JAX has", "--devices is 8", "choose at most 4, or 'auto'"),
    "--devices 20000": ("it must be 'auto' or lie between 1 and 256", "--devices is 20000"),
    "--devices 3": ("cannot be spread evenly over", "a population of 8", "--devices may be 1, 2, 4"),
    "--estimator.truncation 201": ("it must lie between 1 and the horizon", "(K) is 201", "T = 200"),
    "--estimator.truncation 0": ("it must lie between 1 and the horizon", "(K) is 0"),
    "--estimator.particles 7": ("must be even and at least 2", "--estimator.particles is 7"),
    "--estimator.particles 0": ("must be even and at least 2", "--estimator.particles is 0"),
    "--estimator.sigma 0": ("it must be above 0 and finite", "--estimator.sigma is 0.0"),
    "--estimator.sigma -0.1": ("it must be above 0 and finite", "--estimator.sigma is -0.1"),
    "--estimator.sigma nan": ("it must be above 0 and finite", "--estimator.sigma is nan"),
    "--estimator.sigma inf": ("it must be above 0 and finite", "--estimator.sigma is inf"),
    "--estimator tbptt --estimator.particles 0": ("it must be at least 1", "--estimator.particles is 0"),
    "--estimator gpes": ("gpes needs --estimator.perturbation-period", "a multiple of K = 50"),
    "--estimator gpes --estimator.perturbation-period 30": (
        "it must be a multiple of the truncation length",
        "the perturbation period is 30 steps",
        "K = 50",
        "T = 200",
    ),
    "--estimator nres --estimator.analytic": ("--estimator.analytic is a setting of pes, and not of nres",),
    "--estimator.perturbation-period 40": ("is a setting of gpes, and not of pes",),
    "--estimator rtrl --optimizer mlp": (
        "carries a derivative of the inner state for every entry of theta",
        "this theta has 1,762",
        "Choose a smaller optimizer, or another unbiased estimator",
    ),
    "--outer.learning-rate 0": ("it must be above 0 and finite", "--outer.learning-rate is 0.0"),
    "--outer.final-fraction 2": ("it must lie between 0 and 1", "--outer.final-fraction is 2.0"),
    "--seed -1": ("it must lie between 0 and", "--seed is -1"),
    "--task.horizon 99999999999999999999": ("it must be at most 2147483647", "--task.horizon is 99999"),
    "--updates 3000000000": ("it must be at most 2147483647", "--updates is 3000000000"),
    "--chunk 3000000000": ("it must be at most 2147483647", "--chunk is 3000000000"),
    "--task.hidden 4 3000000000": ("it must be at most 2147483647", "--task.hidden is 3000000000"),
    "--task.hidden " + "4 " * 101: ("it may have at most 100", "--task.hidden has 101 layers"),
    "--estimator.particles 3000000000": (
        "it must be at most 2147483647",
        "--estimator.particles is 3000000000",
    ),
    "--task.hidden 1000000000": (
        "the run would need",
        "at least 6.0 TB on each device",
        "fewer --estimator.p",
    ),
    "--estimator.particles 1000000000": ("the run would need", "TB on each device"),
    "--task.batch-size 1000000000": ("the run would need", "at least 260.0 GB on each device"),
    "--evaluation.seeds 1000000000": (
        "the comparison would need",
        "12,000 GB for the losses of 1000000000 seeds",
    ),
    "--evaluation.steps 1000000000": ("the comparison would need", "480 GB", "x 1000000000 steps"),
    "--wandb sometimes": ("Invalid choice", "sometimes", "offline"),
}


@pytest.mark.parametrize("arguments", ARGUMENTS)
def test_arguments(arguments: str) -> None:
    with with_memory(2**34):
        outcome = meta_train("--estimator.particles 16 --task.horizon 200", arguments)
    check(outcome, 2, *ARGUMENTS[arguments])
    assert not Path("runs").exists()


@pytest.mark.slow
def test_absurd_numbers_are_refused_before_anything_is_allocated() -> None:
    """A process of 2 GB of memory, including JAX itself, can say it. (An array of all pairs takes 4 GB.)"""
    script = """
import resource, sys
from meta_train.commands import exit_codes, meta_train
resource.setrlimit(resource.RLIMIT_DATA, (2 * 2**30, -1))
sys.exit(exit_codes.exit_code_of("meta-train", meta_train.command, sys.argv[1:]))
"""
    process = start("--wandb disabled --devices 2 --estimator.particles 1000000000", program=script)
    err = process.communicate(timeout=240)[1]
    assert process.returncode == 2 and "TB on each device" in err, err


@pytest.mark.parametrize("flags", ["--estimator tbptt", "--estimator uoro", "--estimator.analytic"])
def test_an_estimator_that_cannot_do_the_task(flags: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """The message comes before data is loaded or a folder is made."""

    def load(data_dir: Path | None) -> None:
        raise AssertionError("data was loaded")

    def build(settings: TaskSettings) -> Task:
        digits = task.find_task("digits-mlp").build(settings)
        return dataclasses.replace(digits, load=load, differentiable=False)

    monkeypatch.setitem(task._REGISTRY, "accuracy", Registration(build, TaskSettings()))
    outcome = meta_train("--task accuracy", flags)
    check(
        outcome,
        2,
        "differentiates the losses of the task",
        "choose an estimator that needs only their values",
    )
    assert not Path("runs").exists()


def test_debug_shows_the_traceback_and_keeps_the_exit_code() -> None:
    outcome = meta_train("--updates", 0, "--debug")
    assert outcome.code == 2
    assert "Traceback (most recent call last)" in outcome.err
    assert outcome.err.splitlines()[-1] == "meta-train: --updates is 0; it must be at least 1"


@pytest.mark.parametrize("name", ["mnist", "fashion-mnist", "cifar10"])
@pytest.mark.parametrize("by", ["--data-dir", "TFDS_DATA_DIR"])
def test_missing_data(
    name: str, by: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, closed_port: int
) -> None:
    for variable in ("http_proxy", "https_proxy", "HTTP_PROXY", "HTTPS_PROXY"):
        monkeypatch.setenv(variable, f"http://127.0.0.1:{closed_port}")
    flags = ("--data-dir", tmp_path) if by == "--data-dir" else ()
    monkeypatch.setenv("TFDS_DATA_DIR", "elsewhere" if flags else str(tmp_path))
    outcome = meta_train("--task", f"{name}-mlp", *flags)
    data = name.replace("-", "_")
    check(
        outcome,
        2,
        "connect to the network",
        f"{data} is not in '{tmp_path}'",
        "set --data-dir or TFDS_DATA_DIR",
    )
    assert not Path("runs").exists()


CONFIGURATIONS: dict[str, tuple[str, str]] = {
    "updates: [1,": ("cannot be read", "while parsing"),
    "just words": ("is not a mapping of settings to values", "file.yaml"),
    "sigma: 0.1\nestimator:\n  sgima: 0.1": ("has unknown settings", "--estimator.sgima, --sigma"),
    "outer: {clip_norm: 1.0}": ("which is gone: each meta-gradient is divided", "remove it to start"),
    "run_dir: x": ("has unknown settings", "--run-dir"),
    "updates: many": ("Error parsing", "--updates"),
    "task: {name: digit-mlp}": ("unknown task", "did you mean 'digits-mlp'?"),
    "estimator: {analytic: maybe}": ("use true or false", "'maybe' for --estimator.analytic"),
    "estimator: {sigma: nan}": ("it must be above 0 and finite", "--estimator.sigma is nan"),
    "updates: 2026-99-99": ("Error parsing", "--updates"),
    "updates: !!int abc": ("Error parsing", "--updates"),
    "updates: true": ("Error parsing", "--updates"),
    "updates: 1.5": ("Error parsing", "--updates"),
    f"updates: {'9' * 10_000}": ("Error parsing", "--updates"),
    "updates: !!python/object/apply:os.system [id]": ("takes a single value, not a list", "for --updates"),
    "updates: [3]": ("takes a single value, not a list", "'['3']' for --updates"),
    "task: {hidden: [[3]]}": ("cannot be read", "expected a single value at line 1"),
    "wandb: [offline, --run-dir, /x]": ("a value must not look like a flag", "for --wandb"),
    "wandb: [offline, -h]": ("a value must not look like a flag", "for --wandb"),
    "wandb: -h": ("a value must not look like a flag", "for --wandb"),
    "updates: 3\nseed: 1\nupdates: 4": ("more than once", "sets --updates more"),
    "task: {batch-size: 3, batch_size: 3}": ("more than once", "sets --task.batch-size more"),
    "task: &a {horizon: 20, x: *a}": ("aliases are not allowed", "line 1"),
    "outer: &a {learning_rate: 1}\nestimator: {<<: *a}": ("aliases are not allowed", "line 2"),
    "[" * 20_000: ("it is nested too deeply",),
    "{updates: " * 10_000: ("it is nested too deeply",),
    f"# {'x' * 10**6}\nupdates: 3": ("is larger than 1,000,000 bytes",),
    'data_dir: "x\\0"': ("must not contain a null character", r"'x\x00' for --data-dir"),
    '"\\e]0;x\\a": 1': ("has unknown settings", r"\x1b]0;x\x07"),
}


@pytest.mark.parametrize("text", CONFIGURATIONS, ids=lambda text: text[:40])
def test_configuration_files(text: str) -> None:
    Path("file.yaml").write_text(text)
    outcome = meta_train("--config", "file.yaml")
    check(outcome, 2, *CONFIGURATIONS[text])
    assert outcome.err.replace("\n", "").isprintable() and len(outcome.err) < 4000


def test_aliases_of_aliases_are_refused_before_they_are_followed() -> None:
    """The file would stand for 2^60 settings."""
    lines = ["a0: &a0 {k: 1}", *(f"a{i}: &a{i} {{p: *a{i - 1}, q: *a{i - 1}}}" for i in range(1, 60))]
    Path("file.yaml").write_text("\n".join(lines))
    check(meta_train("--config", "file.yaml"), 2, "aliases are not allowed", "line 2")


def test_a_configuration_is_a_regular_file() -> None:
    """The others would never end, or wait for ever."""
    os.mkfifo("fifo")
    for path in ("fifo", "/dev/zero", "."):
        check(meta_train("--config", path), 2, "is not a regular file", f"the configuration {path}")


def test_a_configuration_file_that_is_not_there() -> None:
    check(meta_train("--config", "file.yaml"), 2, "cannot be read", "file.yaml", "No such file")


def test_config_excludes_resume(tiny_run: Run) -> None:
    outcome = meta_train("--config", tiny_run.path / "config.yaml", "--resume", tiny_run.path)
    check(outcome, 2, "give --config or --resume, not both")


def test_run_dir_excludes_resume(tiny_run: Run) -> None:
    outcome = meta_train("--run-dir", "elsewhere", "--resume", tiny_run.path)
    check(outcome, 2, "give --run-dir or --resume, not both")
