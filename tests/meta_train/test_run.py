"""One run from start to end: the content of its folder, and that equal runs leave equal files."""

from __future__ import annotations

import dataclasses
import hashlib
import json
import re
import shutil
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path
from typing import Any
from unittest import mock

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import yaml
from safetensors import safe_open
from safetensors.numpy import save_file

import learned_opt
from inner_tasks import TaskSettings, find_task, task
from learned_opt import ARCHITECTURES
from meta_train.commands import learned_opt as learned_opt_command
from meta_train.commands.meta_train import parse
from meta_train.estimators import ESTIMATORS
from meta_train.report import baselines, comparison
from meta_train.report.baselines import DEFAULT_BASELINES
from meta_train.report.comparison import Comparison
from meta_train.report.evaluation import CRITERIA, Contestant, Criterion
from meta_train.run.config import Config, save_config
from meta_train.run.folder import RunFolder, read_metrics
from tests.marks import slow
from tests.meta_train import command
from tests.meta_train.command import TINY, TINY_RIVALS, Run, against, lines, meta_train, words


def test_the_folder_of_a_run(tiny_run: Run) -> None:
    assert {path.name for path in tiny_run.path.iterdir()} == {
        "config.yaml",
        "metrics.jsonl",
        "checkpoints",
        "lock",
        "optimizer.safetensors",
        "report",
    }
    assert {path.name for path in (tiny_run.path / "checkpoints").iterdir()} == {"0", "2", "3"}
    for picture in ("training_curves", "learning_rates", "meta_training"):
        content = (tiny_run.path / "report" / f"{picture}.png").read_bytes()
        assert content.startswith(b"\x89PNG") and len(content) > 10_000


def test_the_terminal_names_the_folder_and_what_is_in_it(tiny_run: Run) -> None:
    said = tiny_run.outcome.err.splitlines()
    settings = "digits-mlp (T 10), pes (sigma 0.03, truncation 4), 8 particles on 2 devices"
    assert re.fullmatch(re.escape(f"{tiny_run.path}: {settings}, ") + r"[\d.]+ kB each", said[0])
    assert f"optimizer: {tiny_run.path}/optimizer.safetensors" in said
    assert said[-1] == f"report: {tiny_run.path}/report"
    assert tiny_run.outcome.out == ""


# Without RTRL, for which the default optimizer has too many weights, and PES, which the other tests use.
OTHERS = [name for name in (*ESTIMATORS, "pes-analytic") if name not in ("pes", "rtrl")]


@pytest.mark.slow
@pytest.mark.parametrize("name", OTHERS)
def test_every_estimator_meta_trains_and_resumes(name: str, tmp_path: Path, no_comparing: None) -> None:
    """On the default task; two updates and a resumed one equal three uninterrupted updates."""
    flags = {
        "gpes": "--estimator gpes --estimator.perturbation-period 8",
        "pes-analytic": "--estimator.analytic",
    }.get(name, f"--estimator {name}")
    whole, parts = tmp_path / "whole", tmp_path / "parts"
    outcome = meta_train(TINY, flags, "--updates 3 --checkpoint-every 1 --devices 2 --run-dir", whole)
    assert outcome.code == 0, outcome.err
    shutil.copytree(whole, parts)
    shutil.rmtree(parts / "checkpoints" / "3")
    shutil.rmtree(parts / "report")
    outcome = meta_train("--resume", parts)
    assert outcome.code == 0, outcome.err
    assert "at update 2" in outcome.err
    assert lines(parts) == lines(whole)
    assert (parts / "optimizer.safetensors").read_bytes() == (whole / "optimizer.safetensors").read_bytes()
    assert all(line["skipped"] == 0 and line["gradient_norm"] > 0 for line in lines(whole))


def test_metrics_have_one_line_per_update(tiny_run: Run) -> None:
    metrics = list(read_metrics(tiny_run.path / "metrics.jsonl"))
    assert [line["update"] for line in metrics] == [1, 2, 3]
    for line in metrics:
        assert line.keys() == {
            *("update", "loss", "gradient_norm", "snr", "snr_across", "xi_norm", "clipped", "nonfinite"),
            *("dropped", "episodes", "steps", "skipped", "seconds"),
        }
        assert 2 < line["loss"] < 3.5  # a fresh network guesses, with a loss of ln 10 = 2.3
        assert line["gradient_norm"] > 0 and line["snr"] > 0 and line["xi_norm"] > 0
        assert line["nonfinite"] == line["skipped"] == 0
        assert line["seconds"] > 0
    # An episode has windows of 4, 4 and 2 steps; the four pairs start at its steps 0, 0, 4 and 8.
    assert [line["steps"] for line in metrics] == [
        2 * (4 + 4 + 4 + 2),
        2 * (4 + 4 + 2 + 4),
        2 * (2 + 2 + 4 + 4),
    ]
    assert [line["episodes"] for line in metrics] == [2, 2, 4]


def test_config_yaml_is_the_resolved_configuration(tiny_run: Run, tmp_path: Path) -> None:
    file = tiny_run.path / "config.yaml"
    again = parse(["--config", str(file)]).settings
    assert again == parse(words(TINY, "--updates 3 --checkpoint-every 2 --devices 2")).settings
    values = yaml.safe_load(file.read_text())
    assert (values["task"]["hidden"], values["devices"], values["updates"]) == ([4], 2, 3)
    overridden = parse(words("--updates 9 --estimator.sigma 0.5 --config", file)).settings
    assert (overridden.updates, overridden.estimator.sigma) == (9, 0.5)
    assert overridden.task == again.task and overridden.estimator.truncation == 4


def test_summary_has_the_names_that_others_script_against(tiny_run: Run) -> None:
    summary = json.loads((tiny_run.path / "report" / "summary.json").read_text())
    assert (summary["task"], summary["steps"], summary["seeds"]) == ("digits-mlp", 5, 1)
    assert summary["optimizers"].keys() == {"learned", *TINY_RIVALS}
    for measured in summary["optimizers"].values():
        for name in ("mean_loss", "final_loss", "validation_loss"):
            assert 0.5 < measured[name] < 5
        assert 0 <= measured["validation_accuracy"] <= 1
    for baseline in (summary["optimizers"][name] for name in TINY_RIVALS):
        tried = {entry["learning_rate"]: entry["mean_loss"] for entry in baseline["tried"]}
        assert {1e-4, 1e-2, 1.0} <= tried.keys()
        assert baseline["learning_rate"] == min(tried, key=tried.__getitem__)
        assert min(tried) < baseline["learning_rate"] < max(tried)
    assert summary["ranked_by"] == "mean_loss"
    learned, adam = (summary["optimizers"][name] for name in ("learned", "adam"))
    assert learned["ratio_to_adam"] == pytest.approx(learned["mean_loss"] / adam["mean_loss"])
    best = min(summary["optimizers"][name]["mean_loss"] for name in TINY_RIVALS)
    assert summary["optimizers"][summary["best"]]["mean_loss"] == best
    assert learned["ratio_to_best"] == pytest.approx(learned["mean_loss"] / best)


def test_the_optimizer_file(tiny_run: Run) -> None:
    file = tiny_run.path / "optimizer.safetensors"
    with safe_open(file, "numpy") as opened:
        assert opened.metadata().keys() == {"learned_opt"}
        text = opened.metadata()["learned_opt"]
    metadata = json.loads(text)
    assert text == json.dumps(metadata, sort_keys=True, separators=(",", ":"))
    said = metadata["meta_training"]
    assert (said["task"]["name"], said["updates"], said["seed"]) == ("digits-mlp", 3, 0)
    assert said["inner_steps"] == sum(line["steps"] for line in lines(tiny_run.path))
    assert said["final_meta_loss"] == lines(tiny_run.path)[-1]["loss"]
    # Nothing that differs between equal runs.
    for word in ("devices", "chunk", "seconds", "wandb", "data_dir", str(tiny_run.path)):
        assert word not in text
    transformation = learned_opt.load(tiny_run.path)
    params = {"w": np.ones(3, np.float32)}
    updates, _ = transformation.update(params, transformation.init(params), params)
    assert np.all(np.isfinite(updates["w"])) and np.any(updates["w"] != 0)


def test_learned_opt_inspect(tiny_run: Run) -> None:
    outcome = command.learned_opt("inspect", tiny_run.path)
    said = dict(line.split(maxsplit=1) for line in outcome.out.splitlines())
    assert outcome.code == 0
    assert (said["architecture"], said["weights"], said["updates"]) == ("mlp", "1,762", "3")


def test_learned_opt_evaluate_finds_what_the_run_found(
    tiny_run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    tiny = find_task("digits-mlp")._replace(settings=TaskSettings((4,), 64, 5))
    monkeypatch.setitem(task._REGISTRY, "tiny", tiny)
    file = tmp_path / "mine" / "optimizer.safetensors"
    file.parent.mkdir()
    shutil.copy(tiny_run.path / "optimizer.safetensors", file)
    flags = "--tasks tiny --seeds 1 --learning-rates 3 --devices 2 --record --out"
    with against(*TINY_RIVALS):
        outcome = command.learned_opt("evaluate", file.parent, flags, tmp_path)
    assert outcome.code == 0, outcome.err
    said = " ".join(outcome.out.split())
    for part in (
        "1 of 1: tiny, 5 steps",
        "tiny: 5 steps, 1 unseen seeds, best mean training loss first",
        "mine",
    ):
        assert part in said
    for part in ("Adam", "SGD, momentum, linear", f"report: {tmp_path}", f"recorded in {file}"):
        assert part in said
    found = json.loads((tmp_path / "evaluation.json").read_text())
    (own,), overall = found["comparisons"], found["overall"]
    run = json.loads((tiny_run.path / "report" / "summary.json").read_text())
    costs, *_ = (
        {
            name: tuple(values.pop(cost) for cost in ("update_seconds", "state_bytes", "step_seconds"))
            for name, values in comparison["optimizers"].items()
        }
        for comparison in (own, run)
    )
    assert own["optimizers"]["mine"] == run["optimizers"]["learned"]
    for name in TINY_RIVALS:
        assert own["optimizers"][name] == run["optimizers"][name]
    # 64-4-10: 310 parameters. Adam keeps two numbers for each and a count, `mlp` six momenta.
    assert costs["adam"][1] == 4 * (2 * 310 + 1) and costs["mine"][1] == 4 * (6 * 310 + 1)
    assert costs["sgdm-linear"][1] == 4 * (310 + 1)
    assert all(0 < update < step < 1 for update, _, step in costs.values())
    assert overall["mine"]["tasks"] == 1
    for ratio in ("ratio_to_best", "ratio_to_adam"):
        assert overall["mine"][ratio] == pytest.approx(own["optimizers"]["mine"][ratio])
    assert overall["mine"]["memory_to_adam"] == pytest.approx(costs["mine"][1] / costs["adam"][1])
    for name in ("training_curves.png", "learning_rates.png", "ratios.png"):
        assert (tmp_path / name).read_bytes().startswith(b"\x89PNG")
    table = (tmp_path / "table.md").read_text().splitlines()
    assert len(table) == 2 + 3 and len({line.count("|") for line in table}) == 1
    # The model card is the one that the run wrote, except for the name of the task.
    cards = [learned_opt.read(path).metadata["comparisons"] for path in (file, tiny_run.path)]
    assert cards[0] == [cards[1][0] | {"task": "tiny"}]
    assert "tiny, 5 steps, 1 seeds: mean loss" in command.learned_opt("inspect", file).out


@pytest.mark.slow
@pytest.mark.parametrize("objective", ["validation-loss", "validation-accuracy"])
def test_the_report_is_ranked_by_the_objective(objective: str, tiny_run: Run, tmp_path: Path) -> None:
    """The report of a run, and that of `learned-opt evaluate` with its file."""
    asked = []

    def compare(*args: Any, criterion: Criterion, **kwargs: Any) -> Comparison:
        asked.append(criterion)
        return tiny_run.comparison._replace(criterion=criterion)

    flags = f"--updates 1 --devices 2 --task.objective {objective}"
    with mock.patch("meta_train.run.learning.compare", compare):
        outcome = meta_train(TINY, flags, "--run-dir", tmp_path)
    assert outcome.code == 0, outcome.err
    assert asked == [CRITERIA[objective]]
    assert f"best {CRITERIA[objective].label} first" in " ".join(outcome.err.split())
    found = json.loads((tmp_path / "report" / "summary.json").read_text())
    key, optimizers = found["ranked_by"], found["optimizers"]
    assert key == CRITERIA[objective].key
    ratio = optimizers["learned"][key] / optimizers["adam"][key]
    assert optimizers["learned"]["ratio_to_adam"] == pytest.approx(ratio)
    (own,) = learned_opt.read(tmp_path).metadata["comparisons"]
    assert (own["ranked_by"], own["own"]["ratio_to_adam"]) == (key, pytest.approx(ratio))
    assert learned_opt_command._objective(tmp_path) == objective
    assert learned_opt_command._objective(learned_opt.pretrained_path("adam-small-tasks")) == "training-loss"


def test_names_of_optimizers_do_not_collide(
    tiny_run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A run may be called adam, two runs may have one name, and a folder called sgdm does not hide SGD."""
    monkeypatch.chdir(tmp_path)
    Path("sgdm").mkdir()
    for folder in ("adam", "a/run", "b/run"):
        Path(folder).mkdir(parents=True)
        shutil.copy(tiny_run.path / "optimizer.safetensors", folder)
    contestants, files = learned_opt_command._contestants(["./adam", "a/run", "b/run", "sgdm"])
    assert list(contestants)[:3] == list(files) == ["./adam", "run", "b/run"]
    assert set(list(contestants)[3:]) == {"sgdm", *DEFAULT_BASELINES}


def test_what_is_appended_to_a_learned_optimizer(tmp_path: Path) -> None:
    """A schedule makes the rate one to tune; the other is not told the number of steps."""
    muon = learned_opt.get_architecture("muon-mlp")
    theta = muon.init_theta(jax.random.key(0), 1)
    file = tmp_path / "rule.safetensors"
    learned_opt.save(file, "muon-mlp", theta, {})
    names = [f"{file}", f"{file}-cosine", f"{file}-no-num-steps"]
    contestants, files = learned_opt_command._contestants(names)
    assert list(files) == ["rule"]
    own, cosine, untold = (contestants[f"rule{ending}"] for ending in ("", "-cosine", "-no-num-steps"))
    assert len({own.identity, cosine.identity, untold.identity}) == 3
    params, gradients = jnp.ones((4, 5)), jnp.cos(jnp.arange(20.0)).reshape(4, 5)

    def second_step(tx: Any) -> Any:
        _, state = tx.update(gradients, tx.init(params), params)
        return tx.update(gradients, state, params)[0]

    def of(contestant: Contestant, theta: Any, *told: int) -> Any:
        optimizer = contestant.optimizer
        _, state = optimizer.update(theta, gradients, optimizer.init(params), params, *told)
        return optimizer.update(theta, gradients, state, params, *told)[0]

    steps = 40
    assert own.make(steps).optimizer.takes_num_steps
    expected = second_step(learned_opt.as_optax(muon, theta, num_steps=steps))
    np.testing.assert_allclose(of(own.make(steps), own.make(steps).theta, steps), expected, rtol=1e-5)
    assert not untold.make(steps).optimizer.takes_num_steps
    expected = second_step(learned_opt.as_optax(muon, theta))
    np.testing.assert_allclose(of(untold.make(steps), untold.make(steps).theta), expected, rtol=1e-5)
    assert cosine.make(steps).theta is None
    expected = second_step(learned_opt.as_optax(muon, theta, learning_rate=baselines.cosine(0.5, steps)))
    np.testing.assert_allclose(of(cosine.make(steps), jnp.float32(0.5)), expected, rtol=1e-5)


def forge(file: Path, name: str) -> None:
    """Give a file of results an array of another shape or name."""
    with safe_open(file, framework="numpy") as opened:
        arrays, metadata = {key: opened.get_tensor(key) for key in opened.keys()}, opened.metadata()  # noqa: SIM118
    save_file(arrays | {name: np.zeros((3, 7), np.float32)}, file, metadata)


def test_a_folder_may_have_any_name(tiny_run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Also one that Rich would take for markup; and it may be the current one."""
    tiny = find_task("digits-mlp")._replace(settings=TaskSettings((4,), 64, 5))
    monkeypatch.setitem(task._REGISTRY, "tiny", tiny)
    folder = tmp_path / "run[bold]"
    folder.mkdir()
    shutil.copy(tiny_run.path / "optimizer.safetensors", folder)
    monkeypatch.chdir(folder)
    with against(*TINY_RIVALS):
        outcome = command.learned_opt("evaluate . --tasks tiny --seeds 1 --learning-rates 2 --devices 1")
    assert outcome.code == 0, outcome.err
    assert "run[bold]: " in " ".join(outcome.out.split())


def test_a_stopped_evaluation_goes_on(tiny_run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """What is finished is not repeated, and the results are those of an evaluation that was not stopped."""
    tiny = find_task("digits-mlp")._replace(settings=TaskSettings((4,), 64, 5))
    for name in ("one", "two"):
        monkeypatch.setitem(task._REGISTRY, name, tiny)
    runs: list[str] = []
    whole = comparison.run

    def run(training: Any, contestant: Contestant, *args: Any, **kwargs: Any) -> Any:
        runs.append("tuned" if contestant.theta is None else "learned")
        if len(runs) == 5:
            raise learned_opt.LearnedOptError("stopped")
        return whole(training, contestant, *args, **kwargs)

    monkeypatch.setattr(comparison, "run", run)
    command_line = [tiny_run.path, "--tasks one two --seeds 1 --learning-rates 2 --devices 1 --out", tmp_path]
    with against(*TINY_RIVALS):
        assert command.learned_opt("evaluate", *command_line).code == 1
        assert runs == ["learned", "tuned", "tuned", "learned", "tuned"]
        first = json.loads((tmp_path / "evaluation.json").read_text())["comparisons"]
        refused = command.learned_opt("evaluate", *command_line, "--resume --learning-rates 3")
        assert refused.code == 2 and "other settings (learning rates)" in " ".join(refused.err.split())
        outcome = command.learned_opt("evaluate", *command_line, "--resume")
        assert outcome.code == 0, outcome.err
        assert runs[5:] == ["tuned", "tuned"]
        found = json.loads((tmp_path / "evaluation.json").read_text())["comparisons"]
        again = command.learned_opt("evaluate", *command_line)
        assert again.code == 2 and "go on with it with --resume" in " ".join(again.err.split())
        file = tmp_path / "results" / "1" / "adam.safetensors"
        for name in ("losses", "\x1b[2J"):
            forge(file, name)
            refused = command.learned_opt("evaluate", *command_line, "--resume")
            assert refused.code == 2 and "does not have the losses and metrics" in " ".join(
                refused.err.split()
            )
        file.write_bytes(b"damaged")
        refused = command.learned_opt("evaluate", *command_line, "--resume")
        assert refused.code == 2 and "is damaged; remove it" in " ".join(refused.err.split())
    one, two, before = (
        {
            name: {key: value for key, value in own.items() if "seconds" not in key}
            for name, own in each["optimizers"].items()
        }
        for each in (*found, *first)
    )
    assert one == two == before  # both tasks are the same


@pytest.mark.parametrize(
    ("flags", "said"),
    [
        ("adam --resume", "--resume goes on with the comparison in --out"),
        ("relative-mlp-small-tasks-cosine", "this optimizer takes no learning rate"),
        ("relative-mlp-small-tasks-no-num-steps", "this optimizer is never told the number of steps"),
        ("adam --seeds 0", "--seeds is 0; it must be at least 1"),
        ("adam --horizons 10 -3", "--horizons is -3"),
        ("Schedule", "'Schedule' is not an optimizer file"),
        ("chain", "'chain' is not an optimizer file, a pretrained optimizer"),
        ("nowhere.safetensors", "'nowhere.safetensors' is not an optimizer file"),
        ("adam --record", "--record writes into optimizer files"),
        ("adam --tasks digits-mpl", "did you mean 'digits-mlp'?"),
    ],
)
def test_learned_opt_evaluate_refuses(flags: str, said: str) -> None:
    outcome = command.learned_opt("evaluate", flags)
    assert outcome.code == 2
    assert said in " ".join(outcome.err.split())


@pytest.mark.parametrize("devices", [slow(1), slow(2), 4])
def test_fifty_updates_are_the_same_bits_on_any_number_of_devices(
    devices: int, fifty_updates: Run, tmp_path: Path, no_comparing: None
) -> None:
    """On the same number, too: equal runs leave equal files."""
    outcome = meta_train(TINY, "--updates 50 --devices", devices, "--run-dir", tmp_path)
    assert outcome.code == 0, outcome.err
    assert f"8 particles on {devices} device" in outcome.err
    assert (tmp_path / "optimizer.safetensors").read_bytes() == fifty_updates.optimizer
    assert lines(tmp_path) == lines(fifty_updates.path)


@pytest.mark.parametrize(
    ("optimizer", "updates", "devices"),
    [
        slow("mlp", 50, (1, 2, 4)),
        *((name, 4, (1, 2)) for name in ("adam", "muon-mlp")),
        *(slow(name, 4, (1, 2)) for name in sorted(ARCHITECTURES.keys() - {"mlp", "adam", "muon-mlp"})),
    ],
)
def test_the_bits_are_the_same_as_users_compile(
    optimizer: str,
    updates: int,
    devices: tuple[int, ...],
    tmp_path: Path,
    no_comparing: None,
    optimized: None,
) -> None:
    """The tests above compile with less optimization, which hides differences. Each optimizer may differ."""
    files = set()
    for count in devices:
        run = tmp_path / str(count)
        flags = ("--optimizer", optimizer, "--updates", updates, "--devices", count, "--run-dir", run)
        outcome = meta_train(TINY, *flags)
        assert outcome.code == 0, outcome.err
        files.add((run / "optimizer.safetensors").read_bytes())
    assert len(files) == 1


def test_start_from_an_optimizer(tiny_run: Run, tmp_path: Path, no_comparing: None) -> None:
    """Updates start from its weights; the new file records it; and the old file is not needed to resume."""
    elsewhere, run = tmp_path / "mine.safetensors", tmp_path / "run"
    shutil.copy(tiny_run.path / "optimizer.safetensors", elsewhere)
    flags = "--updates 2 --checkpoint-every 1 --outer.learning-rate 1e-9 --devices 2"
    outcome = meta_train(TINY, flags, "--start-from", elsewhere, "--run-dir", run)
    assert outcome.code == 0, outcome.err
    before, after = learned_opt.read(elsewhere), learned_opt.read(run)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=1e-7), before.theta, after.theta)
    assert after.metadata["meta_training"]["start_from"] == before.metadata["digest"]
    assert "start_from" not in before.metadata["meta_training"]
    elsewhere.unlink()
    shutil.rmtree(run / "checkpoints" / "2")
    shutil.rmtree(run / "report")
    assert meta_train("--resume", run).code == 0
    assert learned_opt.read(run).metadata == after.metadata


def test_start_from_takes_the_architecture_of_the_weights(tiny_run: Run, tmp_path: Path) -> None:
    """For digits-mlp the default is another one; ``--optimizer`` and a file with settings still override."""
    own = ("--start-from", str(tiny_run.path))
    assert parse([]).settings.optimizer == "muon-mlp"
    assert parse([*own]).settings.optimizer == "mlp"
    assert parse([*own, "--optimizer", "sgdm"]).settings.optimizer == "sgdm"
    assert parse(["--start-from=relative-mlp-small-tasks"]).settings.optimizer == "relative-mlp"
    save_config(replace(parse([]).settings, optimizer="adam"), tmp_path / "config.yaml")
    assert parse(["--config", str(tmp_path / "config.yaml"), *own]).settings.optimizer == "adam"


def test_start_from_refuses(tiny_run: Run, tmp_path: Path) -> None:
    for flags, said in (
        (f"--start-from {tiny_run.path} --optimizer sgdm", "holds a 'mlp', but --optimizer is 'sgdm'"),
        ("--start-from nowhere", "--start-from is nowhere, which is not an optimizer file"),
        (f"--start-from {tmp_path}", "there is no optimizer file at"),
    ):
        outcome = meta_train(TINY, flags, "--run-dir", tmp_path / "run")
        assert (outcome.code, said in outcome.err) == (2, True), outcome.err
        assert not (tmp_path / "run").exists()


def test_another_seed_is_another_run(tiny_run: Run, tmp_path: Path, no_comparing: None) -> None:
    assert meta_train(TINY, "--updates 3 --seed 1 --devices 2 --run-dir", tmp_path).code == 0
    one, other = (learned_opt.read(path).theta for path in (tiny_run.path, tmp_path))
    for a, b in zip(*map(jax.tree.leaves, (one, other)), strict=True):
        assert np.any(a != b)


def created(task: str) -> Path:
    """The path of a new run folder."""
    settings = dataclasses.replace(Config().task, name=task)
    with RunFolder.create(None, Config(task=settings)) as folder:
        return folder.path


def test_run_folders_are_numbered(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    assert created("digits-mlp") == Path("runs/digits-mlp-1")
    (tmp_path / "runs" / "digits-mlp-3").mkdir()
    assert created("digits-mlp") == Path("runs/digits-mlp-2")
    assert created("digits-mlp") == Path("runs/digits-mlp-4")
    assert created("my_tasks:digits-mlp") == Path("runs/digits-mlp-5")
    assert created("mnist-mlp") == Path("runs/mnist-mlp-1")


def test_runs_that_start_together_get_folders_of_their_own(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    with ThreadPoolExecutor(8) as pool:
        folders = pool.map(lambda _: created("digits-mlp"), range(40))
    assert len(set(folders)) == 40


def test_a_run_leaves_other_runs_alone(tiny_run: Run, tmp_path: Path, no_comparing: None) -> None:
    def digests() -> dict[str, str]:
        files = (path for path in tiny_run.path.rglob("*") if path.is_file())
        return {str(path): hashlib.sha256(path.read_bytes()).hexdigest() for path in files}

    before = digests()
    assert meta_train(TINY, "--updates", 1, "--devices", 2, "--run-dir", tiny_run.path).code == 2
    assert meta_train("--resume", tiny_run.path).code == 0
    assert digests() == before
