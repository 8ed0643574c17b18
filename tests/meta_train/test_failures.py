"""Everything that goes wrong: one plain message, the right exit code, and nothing lost.

Each row of the table in docs/failures.md has a test here, which also checks that the page quotes what
is said.
"""

from __future__ import annotations

import dataclasses
import errno
import hashlib
import json
import os
import shutil
import socket
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from unittest import mock

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from safetensors.numpy import save_file

import learned_opt
from inner_tasks import Registration, Task, TaskSettings, task
from meta_train.run import tracking
from meta_train.run.run import MAX_SKIPPED
from tests.marks import slow
from tests.meta_train.command import (
    ROOT,
    TINY,
    Outcome,
    Run,
    at_update,
    lines,
    meta_train,
    start,
)
from tests.meta_train.command import learned_opt as learned_opt_command

PAGE = " ".join((ROOT / "docs" / "failures.md").read_text().split())
NO_SPACE = OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

needs_dev_full = pytest.mark.skipif(not Path("/dev/full").exists(), reason="needs /dev/full")


def check(outcome: Outcome, code: int, says: str, *more: str) -> None:
    """Exit code, one plain message, and a page that quotes its words."""
    said = " ".join(outcome.err.replace("│", " ").split())  # tyro frames its messages
    assert outcome.code == code, said
    for words in (says, *more):
        assert words in said
    assert outcome.err.splitlines()[-1].startswith("meta-train: ") or "meta-train --help" in said
    assert "Traceback" not in said
    assert says in PAGE


def digests(folder: Path) -> dict[str, str]:
    """What is in a folder."""
    files = (path for path in folder.rglob("*") if path.is_file())
    return {str(path): hashlib.sha256(path.read_bytes()).hexdigest() for path in files}


@pytest.fixture(autouse=True)
def empty_working_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "work").mkdir()
    monkeypatch.chdir(tmp_path / "work")


@pytest.fixture
def gift(monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[[str], Path]]:
    """Makes the folder of a run by somebody else, whose code writes `executed` when it is imported."""
    monkeypatch.setattr(sys, "meta_path", list(sys.meta_path))
    folder = Path("gifts/run")
    folder.mkdir(parents=True)
    (folder / "evil.py").write_text('open("executed", "w")\n')

    def give(config: str) -> Path:
        (folder / "config.yaml").write_text(config)
        return folder

    yield give
    for name in [name for name in sys.modules if name.partition(".")[0] == "gifts"]:
        del sys.modules[name]


# What can be known from the arguments: the words of the message, and more words.
ARGUMENTS: dict[str, tuple[str, ...]] = {
    "--task digit-mlp": ("unknown task", "there are: digits-mlp, mnist-mlp", "did you mean 'digits-mlp'?"),
    "--optimizer inner_tasks:rule": ("has no 'rule'", "optimizer 'inner_tasks:rule'"),
    "--optimizer inner_tasks:OBJECTIVES": ("is not a function that returns a LearnedOptimizer",),
    "--estimator inner_tasks:Task": ("is not a Method", "estimator 'inner_tasks:Task'"),
    "--task nowhere:digits": ("cannot be imported", "task 'nowhere:digits'", "No module named 'nowhere'"),
    "--estimatr.sigma 0.1": ("Unrecognized options", "--estimatr.sigma", "--estimator.sigma"),
    "--updates many": ("Error parsing", "--updates"),
    "--updates": ("Missing argument", "--updates"),
    "--config": ("Missing argument", "--config"),
    "--optimizer lstm": ("unknown optimizer", "'lstm'", "there are: mlp"),
    "--estimator reinforce": ("unknown estimator", "'reinforce'", "there are: pes"),
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
    "--estimator gpes": ("gpes needs --estimator.perturbation-period", "a multiple of K = 20"),
    "--estimator gpes --estimator.perturbation-period 30": (
        "it must be a multiple of the truncation length",
        "the perturbation period is 30 steps",
        "K = 20",
        "T = 200",
    ),
    "--estimator nres --estimator.analytic": ("--estimator.analytic is a setting of pes, and not of nres",),
    "--estimator.perturbation-period 40": ("is a setting of gpes, and not of pes",),
    "--estimator rtrl": (
        "carries a derivative of the inner state for every entry of theta",
        "this theta has 1,762",
        "Choose a smaller optimizer, or another unbiased estimator",
    ),
    "--outer.learning-rate 0": ("it must be above 0 and finite", "--outer.learning-rate is 0.0"),
    "--outer.clip-norm nan": ("it must be above 0 and finite", "--outer.clip-norm is nan"),
    "--outer.final-fraction 2": ("it must lie between 0 and 1", "--outer.final-fraction is 2.0"),
    "--seed -1": ("it must lie between 0 and", "--seed is -1"),
    "--wandb sometimes": ("Invalid choice", "sometimes", "offline"),
}


@pytest.mark.parametrize("arguments", ARGUMENTS)
def test_arguments(arguments: str) -> None:
    check(
        meta_train("--estimator.particles 16 --task.horizon 200", arguments),
        2,
        *ARGUMENTS[arguments],
    )
    assert not Path("runs").exists()


# Code that a file names: the flag that the user would have to add.
EVIL = {
    "task: {name: 'gifts.run.evil:digits-mlp'}": "--task gifts.run.evil:digits-mlp",
    "optimizer: 'gifts.run.evil:rule'": "--optimizer gifts.run.evil:rule",
    "estimator: {name: 'gifts.run.evil:method'}": "--estimator gifts.run.evil:method",
}


@pytest.mark.parametrize("config", EVIL)
def test_code_that_a_file_names(config: str, gift: Callable[[str], Path]) -> None:
    folder = gift(config)
    for arguments in (("--resume", folder), ("--config", folder / "config.yaml")):
        says = "which is imported only if the command line names it too; if you trust it, add --"
        check(meta_train(*arguments), 2, says, EVIL[config])
        assert not Path("executed").exists() and not Path("runs").exists()
    # Neither does a name at another flag count, nor one that the configuration would give to the flag.
    flag, name = EVIL[config].split()
    assert meta_train("--config", folder / "config.yaml", "--run-dir", name).code == 2
    assert not Path("executed").exists()
    # The trap works.
    meta_train("--config", folder / "config.yaml", EVIL[config], "--updates 0")
    assert Path("executed").exists()


def test_code_that_a_run_names_and_the_command_does_not(gift: Callable[[str], Path]) -> None:
    """The settings of the run are read once more, to be compared with those of the command line."""
    folder = gift("task: {name: 'gifts.run.evil:digits-mlp'}")
    outcome = meta_train("--resume", folder, "--task digits-mlp")
    assert outcome.code == 2 and "if you trust it, add --task gifts.run.evil:digits-mlp" in outcome.err
    assert not Path("executed").exists()


@pytest.mark.parametrize(
    "config",
    [
        "task: {hidden: [4, '--task', 'gifts.run.evil:digits-mlp']}",
        "task: {hidden: [4, '--task=gifts.run.evil:digits-mlp']}",
        "task: {objective: '--coordinator=10.0.0.1:1'}",
    ],
)
def test_a_file_gives_no_other_flags(config: str, gift: Callable[[str], Path]) -> None:
    check(meta_train("--resume", gift(config)), 2, "a value must not begin with '--'")
    assert not Path("executed").exists()


def test_code_that_an_optimizer_file_names(gift: Callable[[str], Path]) -> None:
    file = gift("") / "optimizer.safetensors"
    weights = {"weight": np.zeros(3, np.float32)}
    digest = hashlib.sha256(b"weight float32 (3,) " + weights["weight"].tobytes()).hexdigest()
    metadata = {
        "format_version": 1,
        "architecture": "gifts.run.evil:rule",
        "feature_version": 1,
        "digest": f"sha256:{digest}",
    }
    save_file(weights, file, metadata={"learned_opt": json.dumps(metadata)})
    says = "which is code outside this package and was not imported; if you trust it, name it yourself"
    outcomes = [
        learned_opt_command("inspect", file),
        learned_opt_command("evaluate", file.parent),
        meta_train("--start-from", file),
    ]
    for outcome in outcomes:
        assert outcome.code == 2 and says in outcome.err
    for read in (learned_opt.load, learned_opt.read):
        with pytest.raises(learned_opt.UserError, match=says):
            read(file)
    assert says in PAGE and not Path("executed").exists()
    outcome = learned_opt_command("inspect", file, "--architectures gifts.run.evil:rule")
    assert outcome.code == 2 and "has no 'rule'" in outcome.err and Path("executed").exists()


@pytest.mark.parametrize("flags", ["--estimator tbptt", "--estimator uoro", "--estimator.analytic"])
def test_an_estimator_that_cannot_do_the_task(flags: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Said before data is loaded or a folder is made."""

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


@pytest.fixture
def closed_port() -> Iterator[int]:
    with socket.socket() as bound:  # bound and not listening: connections are refused
        bound.bind(("127.0.0.1", 0))
        yield bound.getsockname()[1]


# Configuration files.

CONFIGURATIONS: dict[str, tuple[str, str]] = {
    "updates: [1,": ("cannot be read", "while parsing"),
    "just words": ("is not a mapping of settings to values", "file.yaml"),
    "sigma: 0.1\nestimator:\n  sgima: 0.1": ("has unknown settings", "--estimator.sgima, --sigma"),
    "run_dir: x": ("has unknown settings", "--run-dir"),
    "updates: many": ("Error parsing", "--updates"),
    "task: {name: digit-mlp}": ("unknown task", "did you mean 'digits-mlp'?"),
    "estimator: {analytic: maybe}": ("it is true or false", "'maybe' for --estimator.analytic"),
    "estimator: {sigma: .nan}": ("it must be above 0 and finite", "--estimator.sigma is nan"),
}


@pytest.mark.parametrize("text", CONFIGURATIONS)
def test_configuration_files(text: str) -> None:
    Path("file.yaml").write_text(text)
    check(meta_train("--config", "file.yaml"), 2, *CONFIGURATIONS[text])


def test_a_configuration_file_that_is_not_there() -> None:
    check(meta_train("--config", "file.yaml"), 2, "cannot be read", "file.yaml", "No such file")


def test_config_excludes_resume(tiny_run: Run) -> None:
    outcome = meta_train("--config", tiny_run.path / "config.yaml", "--resume", tiny_run.path)
    check(outcome, 2, "--config and --resume exclude each other")


def test_run_dir_excludes_resume(tiny_run: Run) -> None:
    outcome = meta_train("--run-dir", "elsewhere", "--resume", tiny_run.path)
    check(outcome, 2, "--run-dir and --resume exclude each other")


# Run folders.


def test_a_run_folder_that_exists(tiny_run: Run) -> None:
    before = digests(tiny_run.path)
    outcome = meta_train(TINY, "--run-dir", tiny_run.path)
    check(outcome, 2, "exists and is not empty", f"--resume {tiny_run.path}")
    assert digests(tiny_run.path) == before


def test_a_run_folder_that_is_a_file() -> None:
    Path("file").write_text("")
    check(meta_train(TINY, "--run-dir", "file"), 2, "the run folder cannot be made", "file")


def test_a_run_folder_inside_a_file() -> None:
    Path("file").write_text("")
    check(meta_train(TINY, "--run-dir", "file/run"), 2, "the run folder cannot be made", "file/run")


def test_a_runs_folder_on_a_disk_that_is_gone() -> None:
    Path("runs").symlink_to("unmounted/runs")
    check(meta_train(TINY), 2, "the run folder cannot be made", "runs")


@pytest.mark.skipif(
    not Path("/proc/self").exists(), reason="/proc is a folder where root cannot write either"
)
def test_a_folder_where_nobody_may_write() -> None:
    check(meta_train(TINY, "--run-dir", "/proc/run"), 2, "the run folder cannot be made", "/proc/run")


@pytest.mark.skipif(os.geteuid() == 0, reason="root may write everywhere")
def test_a_read_only_folder() -> None:
    Path("locked").mkdir(mode=0o500)
    check(
        meta_train(TINY, "--run-dir", "locked/run"), 2, "the run folder cannot be made", "Permission denied"
    )


# Resuming.


def test_resuming_a_folder_without_a_run() -> None:
    check(meta_train("--resume", "."), 2, "there is no run to resume in", "config.yaml is missing")


def test_resuming_a_run_without_a_checkpoint(tiny_run: Run) -> None:
    Path("run").mkdir()
    shutil.copy(tiny_run.path / "config.yaml", "run")
    check(meta_train("--resume", "run"), 2, "There is no checkpoint in", "run/checkpoints")


@pytest.mark.parametrize(
    ("flags", "changed"),
    [
        ("--estimator.sigma 0.5", "estimator.sigma (was 0.03, now 0.5)"),
        ("--task mnist-mlp", "task.name (was digits-mlp, now mnist-mlp)"),
        ("--task.hidden 5 5", "task.hidden (was [4], now [5, 5])"),
        ("--seed 1 --updates 9", "seed (was 0, now 1)"),
        ("--checkpoint-every 3", "checkpoint_every (was 2, now 3)"),
    ],
)
def test_resuming_with_another_configuration(flags: str, changed: str, tiny_run: Run) -> None:
    before = digests(tiny_run.path)
    outcome = meta_train("--resume", tiny_run.path, flags)
    may_change = "only devices, chunk, wandb, data_dir, updates may change"
    check(outcome, 2, "the run to be resumed has another configuration", changed, may_change)
    assert digests(tiny_run.path) == before


@pytest.mark.parametrize("flags", ["--devices 4", "--chunk 2", "--wandb offline", "--data-dir ."])
def test_what_may_change_on_a_resume(flags: str, tiny_run: Run) -> None:
    outcome = meta_train("--resume", tiny_run.path, flags)
    assert (outcome.code, "is finished" in outcome.err) == (0, True)


def test_fewer_updates_on_a_resume(tiny_run: Run) -> None:
    outcome = meta_train("--resume", tiny_run.path, "--updates", 2)
    check(outcome, 2, "on a resume the number may only grow", "--updates is 2", "was to make 3")


def unfinished(run: Run) -> Path:
    """A copy of a run as it was before its optimizer was written."""
    folder = shutil.copytree(run.path, Path("run"))
    shutil.rmtree(folder / "report")
    (folder / "optimizer.safetensors").unlink()
    return folder


def damage(checkpoint: Path) -> None:
    """Flip a bit in every file of arrays."""
    for path in checkpoint.glob("arrays/**/d/*"):
        content = bytearray(path.read_bytes())
        content[len(content) // 2] ^= 1
        path.write_bytes(content)


@pytest.mark.slow
def test_a_damaged_checkpoint(fifty_updates: Run, no_comparing: None) -> None:
    folder = unfinished(fifty_updates)
    damage(folder / "checkpoints" / "50")
    outcome = meta_train("--resume", folder)
    assert outcome.code == 0, outcome.err
    for words in ("The checkpoint of update 50 is damaged", "resumed run at update 40"):
        assert words in outcome.err
    assert "The checkpoint of update" in PAGE and "is damaged" in PAGE
    assert (folder / "optimizer.safetensors").read_bytes() == fifty_updates.optimizer
    assert lines(folder) == lines(fifty_updates.path)


def test_no_whole_checkpoint(tiny_run: Run) -> None:
    folder = unfinished(tiny_run)
    for checkpoint in (folder / "checkpoints").iterdir():
        damage(checkpoint)
    check(
        meta_train("--resume", folder),
        2,
        "can be restored",
        "No checkpoint in run/checkpoints",
        "update 2 is damaged",
    )


def test_metrics_that_were_lost(tiny_run: Run) -> None:
    folder = unfinished(tiny_run)
    (folder / "metrics.jsonl").write_text("")
    check(meta_train("--resume", folder), 2, "put the lost lines back", "metrics.jsonl has 0 bytes")
    assert (folder / "metrics.jsonl").read_text() == ""


# The disk.


def resumed_to_the_same_bits(run: Run) -> None:
    """The folder `run`, when it is gone on with."""
    outcome = meta_train("--resume", "run")
    assert outcome.code == 0, outcome.err
    assert (Path("run") / "optimizer.safetensors").read_bytes() == run.optimizer
    assert lines(Path("run")) == lines(run.path)


FIFTY = f"{TINY} --updates 50 --checkpoint-every 20 --devices 2 --run-dir run"


@pytest.mark.slow
def test_a_full_disk_at_the_metrics(fifty_updates: Run, no_comparing: None) -> None:
    def full() -> None:
        raise NO_SPACE

    with at_update(30, full):
        outcome = meta_train(FIFTY)
    check(outcome, 1, "the disk or a file failed", "No space left on device", "--resume")
    resumed_to_the_same_bits(fifty_updates)


@pytest.mark.slow
def test_a_full_disk_at_a_checkpoint(fifty_updates: Run, no_comparing: None) -> None:
    from checkpoints import orbax_files

    with mock.patch.object(
        orbax_files, "write", side_effect=[mock.DEFAULT, mock.DEFAULT, NO_SPACE], wraps=orbax_files.write
    ):
        outcome = meta_train(FIFTY)
    check(outcome, 1, "could not be saved in", "checkpoint of update 40", "no space left on device")
    assert not Path("run/optimizer.safetensors").exists()
    resumed_to_the_same_bits(fifty_updates)


@needs_dev_full
@pytest.mark.parametrize("file", [slow("config.yaml"), "optimizer.safetensors", slow("report/summary.json")])
def test_a_full_disk_at_a_file(file: str, tiny_run: Run, no_comparing: None) -> None:
    """Nothing that was there is lost, and with room again the run comes to its end."""
    shutil.copytree(tiny_run.path, "run")
    Path("run/report/summary.json").unlink()
    before = digests(Path("run"))
    partial = Path("run") / f"{file}.partial"
    partial.symlink_to("/dev/full")
    outcome = meta_train("--resume", "run")
    check(outcome, 1, "the disk or a file failed", "No space left on device")
    partial.unlink()
    after = digests(Path("run"))
    assert {name: after[name] for name in before if not name.endswith(".png")} == {
        name: digest for name, digest in before.items() if not name.endswith(".png")
    }
    resumed_to_the_same_bits(tiny_run)


WITHIN_4_KIB = """
import resource
from meta_train.commands.entry_points import meta_train

resource.setrlimit(resource.RLIMIT_FSIZE, (4096, resource.RLIM_INFINITY))
meta_train()
"""


@pytest.mark.slow
def test_a_disk_that_gets_full_loses_nothing_of_a_finished_run(tiny_run: Run) -> None:
    """The operating system's own limit, in a process of its own."""
    shutil.copytree(tiny_run.path, "run")
    before = digests(Path("run"))

    with start("--resume", "run", "--updates", 100, program=WITHIN_4_KIB) as child:
        _, said = child.communicate(timeout=300)
    check(Outcome(child.returncode, "", said), 1, "could not be saved in", "file too large")
    after = digests(Path("run"))
    kept = [name for name in before if "config.yaml" not in name and "metrics.jsonl" not in name]
    assert {name: after[name] for name in kept} == {name: before[name] for name in kept}
    assert lines(Path("run"))[:3] == lines(tiny_run.path)


# Numbers that are not finite.


@pytest.fixture
def noisy(monkeypatch: pytest.MonkeyPatch) -> Callable[[float], None]:
    """Registers the task `noisy`, the given share of whose losses is NaN. Its gradients are finite."""

    def register(share: float) -> None:
        noisy = Task(
            init=lambda key: {"w": jnp.ones(3)},
            sample=lambda share, key: jnp.where(jax.random.uniform(key) < share, jnp.nan, 0.0),
            loss=lambda params, noise: jnp.sum(params["w"] ** 2) + noise,
            metrics=lambda params, share: {},
            load=lambda data_dir: jnp.float32(share),
            horizon=10,
        )
        monkeypatch.setitem(task._REGISTRY, "noisy", Registration(lambda settings: noisy, TaskSettings()))

    return register


NOISY = f"{TINY} --task noisy --devices 2 --run-dir run"


def test_never_a_finite_meta_gradient(noisy: Callable[[float], None]) -> None:
    noisy(1.0)
    outcome = meta_train(NOISY, "--updates", 100)
    check(
        outcome, 1, "the meta-gradient was not finite 20 updates in a row", "try a smaller --estimator.sigma"
    )
    metrics = lines(Path("run"))
    assert len(metrics) == MAX_SKIPPED == 20
    assert all(line["skipped"] == 1 and line["loss"] is None for line in metrics)
    assert not Path("run/optimizer.safetensors").exists()


@pytest.mark.slow
def test_a_skipped_update_changes_nothing(noisy: Callable[[float], None], no_comparing: None) -> None:
    noisy(1.0)
    assert meta_train(NOISY, "--updates", 2).code == 0
    artifact = learned_opt.read("run")
    fresh = learned_opt.get_architecture("mlp").init_theta(jax.random.fold_in(jax.random.key(0), 0), 1)
    for a, b in zip(*map(jax.tree.leaves, (artifact.theta, fresh)), strict=True):
        np.testing.assert_array_equal(a, b)
    assert artifact.metadata["meta_training"]["final_meta_loss"] is None


def test_a_run_goes_on_after_some_skipped_updates(noisy: Callable[[float], None], no_comparing: None) -> None:
    noisy(0.02)
    outcome = meta_train(NOISY, "--updates", 40)
    assert outcome.code == 0, outcome.err
    metrics = lines(Path("run"))
    skipped = [line["skipped"] for line in metrics]
    assert 0 < sum(skipped) < 40
    for line in metrics:
        assert line["skipped"] == (line["gradient_norm"] is None) == (line["nonfinite"] > 0)
    theta = learned_opt.read("run").theta
    assert all(np.all(np.isfinite(w)) for w in jax.tree.leaves(theta))


@pytest.mark.slow
def test_the_count_of_skipped_updates_survives_a_resume(noisy: Callable[[float], None]) -> None:
    noisy(1.0)
    assert meta_train(NOISY, "--updates 100 --checkpoint-every 15").code == 1
    outcome = meta_train("--resume", "run")
    check(outcome, 1, "the meta-gradient was not finite 20 updates in a row", "up to update 20")
    assert len(lines(Path("run"))) == 20


# Weights & Biases.


@pytest.mark.slow
def test_wandb_not_reachable(
    tiny_run: Run, monkeypatch: pytest.MonkeyPatch, closed_port: int, no_comparing: None
) -> None:
    monkeypatch.setenv("WANDB_API_KEY", "0123456789" * 4)
    monkeypatch.setenv("WANDB_BASE_URL", f"http://127.0.0.1:{closed_port}")
    for name in ("WANDB_DATA_DIR", "WANDB_CACHE_DIR", "WANDB_ERROR_REPORTING"):
        monkeypatch.setenv(name, "")  # noted as absent, so that the tracker's own are undone
        monkeypatch.delenv(name)
    monkeypatch.setattr(tracking, "ONLINE_TIMEOUT", 1.0)
    flags = "--updates 3 --checkpoint-every 2 --devices 2 --run-dir run --wandb online"
    outcome = meta_train(TINY, flags)
    assert outcome.code == 0, outcome.err
    assert "W&B: not reachable (" in outcome.err and ", going on offline" in outcome.err
    assert "W&B: not reachable" in PAGE
    assert (Path("run") / "optimizer.safetensors").read_bytes() == tiny_run.optimizer
    assert "wandb" in sys.modules
