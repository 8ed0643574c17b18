"""The command line: the meaning of flags, the sources of settings, and exit codes."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest

from inner_tasks import TaskSettings, register_task
from learned_opt import LearnedOptError, UserError
from meta_train.commands.exit_codes import exit_code_of
from meta_train.commands.meta_train import parse
from meta_train.run.config import config_flags, default_config, save_config, to_dict, validate
from meta_train.run.interrupt import Interrupted
from tests.meta_train.command import (
    ROOT,
    in_process,
    learned_opt,
    learned_opt_command,
    meta_train,
    meta_train_command,
    pes_paper_command,
    start,
    with_memory,
    words,
)

# Names on which scripts of users depend.
FLAGS = words(
    "--task --optimizer --estimator --updates --seed --run-dir --devices --chunk --data-dir --resume",
    "--config --wandb --checkpoint-every --debug --estimator.sigma --estimator.truncation",
    "--estimator.particles --outer.learning-rate",
)
TASKS = ["digits-mlp", "mnist-mlp", "fashion-mnist-mlp", "cifar10-mlp"]


def test_help_documents_every_flag() -> None:
    outcome = meta_train("--help")
    assert outcome.code == 0
    text = outcome.out.replace("│", " ")  # tyro draws frames
    described = dict(re.findall(r"^ +(--[a-z][a-z.-]*)(.*?)\(default:\s", text, re.MULTILINE | re.DOTALL))
    assert described.keys() >= set(FLAGS)
    for flag, description in described.items():
        first, *others = description.split()
        takes_a_value = not re.fullmatch("[A-Z][a-z]+", first)  # a switch has no value before its sentence
        said = " ".join(others if takes_a_value else [first, *others])
        assert re.search(r"[A-Z].{15,}\.$", said), f"{flag} is not described by a sentence: {said}"


@pytest.mark.parametrize("task", TASKS)
def test_help_shows_the_defaults_of_the_task(task: str) -> None:
    text = " ".join(word for word in meta_train("--task", task, "--help").out.split() if word != "│")
    config = default_config(task)
    assert f"(default: {config.updates})" in text
    assert f"(default: {' '.join(map(str, config.task.hidden))})" in text


@pytest.mark.parametrize("task", TASKS)
def test_defaults_are_acceptable(task: str) -> None:
    config = parse(["--task", task]).settings
    assert config == default_config(task)
    assert config.task.name == task


@pytest.mark.usefixtures("own_registry")
@pytest.mark.parametrize(("horizon", "truncation"), [(7, 7), (500, 50)])
def test_an_own_task_has_the_settings_of_the_default_task(horizon: int, truncation: int) -> None:
    """Except for K, which is at most its horizon, and for the objective: it may have no validation data."""
    register_task("own", TaskSettings(horizon=horizon))(lambda settings: None)
    own, default = default_config("own"), default_config("digits-mlp")
    assert own.estimator == replace(default.estimator, truncation=truncation)
    assert own == replace(default, task=own.task, estimator=own.estimator, evaluation=own.evaluation)
    assert own.task.objective == "training-loss"
    validate(own)


def test_parts_to_learn_are_those_of_the_usual_architecture() -> None:
    def learns(*flags: str) -> tuple[str, ...]:
        return parse(["--task", "general-tasks", *flags]).settings.learn

    assert learns() == learns("--optimizer", "muon-mlp") == default_config("general-tasks").learn != ()
    assert learns("--optimizer", "sgdm") == learns("--start-from", "relative-mlp-small-tasks") == ()
    assert learns("--optimizer", "sgdm", "--learn", "momentum") == ("momentum",)


def test_settings_of_every_type(tmp_path: Path) -> None:
    flags = words(
        "--task=cifar10-mlp --task.hidden 64 32 16 --task.horizon 50 --estimator truncated-es",
        "--estimator.sigma 1e-2 --outer.learning-rate=0.5 --devices 2 --chunk auto --data-dir d",
        "--wandb offline --run-dir r --debug",
    )
    arguments = parse(flags)
    config = arguments.settings
    assert (config.task.name, config.task.hidden, config.task.horizon) == ("cifar10-mlp", (64, 32, 16), 50)
    assert (config.estimator.name, config.estimator.sigma) == ("truncated-es", 0.01)
    assert (config.outer.learning_rate, config.devices, config.chunk) == (0.5, 2, "auto")
    assert (config.data_dir, config.wandb, arguments.run_dir) == (Path("d"), "offline", Path("r"))
    assert arguments.debug and arguments.resume is None


@pytest.mark.parametrize(
    "flags",
    [
        "",
        "--task.hidden",  # no value: a linear classifier
        "--task cifar10-mlp --task.hidden 64 32 --data-dir /some/where --devices 4 --chunk 3",
        "--estimator truncated-es --estimator.sigma 1e-05 --wandb offline --seed 7",
        "--estimator pes --estimator.analytic",
        "--estimator gpes --estimator.perturbation-period 40",
    ],
)
def test_a_saved_configuration_is_the_same_when_read(flags: str, tmp_path: Path) -> None:
    config = parse(flags.split()).settings
    save_config(config, tmp_path / "config.yaml")
    assert parse(["--config", str(tmp_path / "config.yaml")]).settings == config
    assert [path.name for path in tmp_path.iterdir()] == ["config.yaml"]


def test_flags_override_a_file_and_a_file_the_defaults_of_its_task(tmp_path: Path) -> None:
    file = tmp_path / "some.yaml"
    file.write_text("task: {name: cifar10-mlp, horizon: 70}\nupdates: 5\nestimator:\n  sigma: 0.5\n")
    config = parse(["--updates", "6", "--config", str(file), "--estimator.sigma", "0.25"]).settings
    assert (config.updates, config.estimator.sigma, config.task.horizon) == (6, 0.25, 70)
    assert config.task.hidden == default_config("cifar10-mlp").task.hidden
    assert config.checkpoint_every == default_config("cifar10-mlp").checkpoint_every
    # Another task on the command line brings its defaults for settings that are not in the file.
    config = parse(["--config", str(file), "--task", "digits-mlp"]).settings
    assert (config.task.hidden, config.task.horizon) == (default_config("digits-mlp").task.hidden, 70)


def test_names_in_a_file_may_be_written_like_flags(tmp_path: Path) -> None:
    file = tmp_path / "some.yaml"
    file.write_text(
        "task: mnist-mlp\nestimator: truncated-es\ncheckpoint-every: 3\nouter: {learning-rate: 0.5}"
    )
    config = parse(["--config", str(file)]).settings
    assert (config.task.name, config.estimator.name) == ("mnist-mlp", "truncated-es")
    assert (config.checkpoint_every, config.outer.learning_rate) == (3, 0.5)


def test_what_is_null_in_a_file_is_left_to_the_defaults(tmp_path: Path) -> None:
    file = tmp_path / "some.yaml"
    file.write_text("updates: null\ndata_dir:\ntask: {hidden: []}")
    assert config_flags(file) == ["--task.hidden"]
    assert parse(["--config", str(file)]).settings.updates == default_config("digits-mlp").updates


def test_to_dict_is_plain_json() -> None:
    values = to_dict(parse(["--data-dir", "x"]).settings)
    assert json.loads(json.dumps(values)) == values


@pytest.mark.parametrize(
    ("error", "code", "says"),
    [
        (UserError("no such thing; take another"), 2, "no such thing; take another"),
        (LearnedOptError("it failed"), 1, "it failed"),
        (Interrupted("stopped; go on", 15), 143, "stopped; go on"),
        (KeyboardInterrupt(), 130, "stopped by Ctrl-C"),
        (OSError(28, "No space left on device", "x/y"), 1, "No space left on device: 'x/y'"),
        (
            RuntimeError("RESOURCE_EXHAUSTED: 9 GiB"),
            1,
            "the device ran out of memory; try a smaller --chunk",
        ),
        (
            ZeroDivisionError("division"),
            1,
            "unexpected failure, ZeroDivisionError: division (--debug shows where)",
        ),
    ],
)
@pytest.mark.parametrize("flags", [[], ["--debug"]])
def test_exit_codes(
    error: BaseException, code: int, says: str, flags: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    def fail(argv: object) -> None:
        raise error

    assert exit_code_of("name", fail, flags) == code
    said = capsys.readouterr().err
    assert said.splitlines()[-1].startswith("name: ") and says in said
    assert ("Traceback" in said) == bool(flags)
    assert flags or said.count("\n") == 1


@pytest.mark.parametrize(
    "flag", ["--task", "--optimizer", "--estimator", "--updates", "--config", "--unknown"]
)
@pytest.mark.parametrize("word", ["a\x1b]0;x\x07", "b\u202e\r\n", "x" * 5_000, "9" * 5_000, "/a" * 2_500])
def test_a_message_quotes_arguments_as_printable_and_short_text(flag: str, word: str) -> None:
    outcome = meta_train([flag, word])
    said = outcome.err
    assert outcome.code == 2 and said.replace("\n", "").isprintable() and len(said) < 4000, said


def test_a_path_that_is_too_long(tmp_path: Path) -> None:
    path = "x" * 5_000
    commands = [
        ("meta-train", meta_train_command, ["--resume", path]),
        ("meta-train", meta_train_command, ["--start-from", path]),
        ("learned-opt", learned_opt_command, ["inspect", path]),
        ("learned-opt", learned_opt_command, ["evaluate", path]),
        ("pes-paper", pes_paper_command, ["variance", "--resume", path]),
    ]
    for program, module, argv in commands:
        outcome = in_process(program, module.command, argv)
        assert outcome.code == 2 and outcome.err.count("\n") == 1 and len(outcome.err) < 500
        assert outcome.err.startswith(f"{program}: ") and "xxx...xxx" in outcome.err


def test_the_value_of_a_flag_is_not_the_name_of_the_experiment() -> None:
    arguments = pes_paper_command.parse(words("--out cost variance --text some-file"))
    assert (arguments.name, arguments.out, str(arguments.options.text)) == (
        "variance",
        Path("cost"),
        "some-file",
    )
    assert pes_paper_command.parse(words("--debug variance --text x")).name == "variance"
    assert pes_paper_command.parse(words("--scale small --seeds 1 2 --debug cost")).name == "cost"
    assert pes_paper_command.parse(words("--scale=small variance --text x")).name == "variance"


def test_weights_to_start_from_set_the_architecture() -> None:
    """In each way in which the flag can be written; a sweep gives None for none."""
    for flags in ("--start-from relative-mlp-small-tasks", "--start_from=relative-mlp-small-tasks"):
        assert parse(words(flags)).settings.optimizer == "relative-mlp"
    assert parse(words("--start-from=None")).settings.optimizer == "muon-mlp"


def test_estimators_of_whole_episodes_have_no_truncation() -> None:
    assert parse(words("--estimator full-es --task.horizon 20")).settings.task.horizon == 20


def test_a_long_path_that_exists_is_not_shortened(tmp_path: Path) -> None:
    folder = tmp_path.joinpath(*["folder-with-a-long-name"] * 20)
    assert parse(["--run-dir", str(folder)]).run_dir == folder


def test_learned_opt_says_what_is_wrong(tmp_path: Path) -> None:
    (tmp_path / "text").write_text("not an optimizer")
    for arguments, says in (
        (("inspect", tmp_path), "there is no optimizer file at"),
        (("inspect", tmp_path / "text"), "is not a complete safetensors file"),
        (("evaluate", tmp_path / "text"), "is not a complete safetensors file"),
        ("evaluate adam --seeds 0", "--seeds is 0; it must be at least 1"),
        ("evaluate adam --horizons 3000000000", "--horizons is 3000000000; it must be at most"),
        ("evaluate lbfgs-cosine", "'lbfgs-cosine' cannot be compared: optax.lbfgs cannot"),
        ("evaluate adam --tasks", "--tasks needs at least one task"),
        ("evaluate adam --tasks mnist-mlp --out /dev/null", "--out is /dev/null, which cannot be used"),
        ("evaluate adam --horizons 1000000000", "the comparison would need 240 GB"),
        ("evaluate adam --seeds 1000000000", "the comparison would need 12,000 GB"),
        ("evaluate adam --learning-rates 1000000000", "the comparison would need 3,200 GB"),
    ):
        with with_memory(2**34):
            outcome = learned_opt(*([arguments] if isinstance(arguments, str) else arguments))
        assert outcome.code == 2
        assert outcome.err.startswith("learned-opt: ") and says in outcome.err
        assert outcome.err.count("\n") == 1


def test_a_mistake_is_noticed_before_jax_starts(tmp_path: Path) -> None:
    """In a separate process, like a user's command."""
    script = """
import sys
from unittest import mock
import jax
from meta_train.commands import meta_train as meta_train_command
from meta_train.commands import exit_codes as commands
with mock.patch.object(jax._src.xla_bridge, "backends", side_effect=AssertionError("JAX was started")):
    sys.exit(commands.exit_code_of("meta-train", meta_train_command.command, sys.argv[1:]))
"""
    result = subprocess.run(
        [sys.executable, "-c", script, "--estimator.particles", "3"],
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        cwd=tmp_path,
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert result.returncode == 2, result.stderr
    assert result.stderr.startswith("meta-train: --estimator.particles is 3;")


def test_a_terminal_shows_a_first_line_before_jax_is_imported() -> None:
    """The module must stay free of slow imports, and the line must not wait for them."""
    program = """
import sys
from unittest import mock
from meta_train.commands import entry_points
assert not {"jax", "tyro", "rich"} & set(sys.modules)
sys.modules["jax"] = None  # so that importing it fails
with mock.patch.object(sys.stderr, "isatty", lambda: True):
    entry_points.learned_opt()
"""
    said = start(program=program).communicate(timeout=120)[1]
    assert said.startswith("learned-opt: loading JAX\n") and "ModuleNotFoundError" in said


def test_ctrl_c_in_a_callback_of_the_garbage_collector_is_not_lost() -> None:
    program = """
import gc, signal, time
from meta_train.commands import entry_points
def once(phase, info):
    gc.callbacks.remove(once)
    signal.raise_signal(signal.SIGINT)
def command(argv):
    gc.callbacks.append(once)
    gc.collect()
    while True:  # not one long sleep: a signal just before it would not end it
        time.sleep(0.01)
entry_points._command_of = lambda module: command
entry_points.meta_train()
"""
    process = start(program=program)
    said = process.communicate(timeout=50)[1]
    assert (process.returncode, said) == (130, "meta-train: stopped by Ctrl-C\n")


def test_ctrl_c_while_jax_is_loaded_shows_one_sentence() -> None:
    program = """
import sys
from meta_train.commands import entry_points

class Slow:
    def find_spec(self, name, path, target=None):
        if name == "jax":
            raise KeyboardInterrupt

sys.meta_path.insert(0, Slow())
entry_points.pes_paper()
"""
    process = start(program=program)
    said = process.communicate(timeout=120)[1]
    assert (process.returncode, said) == (130, "pes-paper: stopped by Ctrl-C\n")
