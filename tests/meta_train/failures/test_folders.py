"""Run folders that cannot be made, and runs that cannot be resumed."""

from __future__ import annotations

import os
import shutil
from pathlib import Path

import pytest

from meta_train.run.folder import RunFolder
from tests.meta_train.command import (
    TINY,
    Run,
    lines,
    meta_train,
)
from tests.meta_train.failures.messages import PAGE, check, digests


def test_a_run_folder_that_exists(tiny_run: Run) -> None:
    before = digests(tiny_run.path)
    outcome = meta_train(TINY, "--run-dir", tiny_run.path)
    check(outcome, 2, "exists and is not empty", f"--resume {tiny_run.path}")
    assert digests(tiny_run.path) == before


def test_a_run_folder_that_is_a_file() -> None:
    Path("file").write_text("")
    check(meta_train(TINY, "--run-dir", "file"), 2, "the run folder cannot be created", "file")


def test_a_run_folder_inside_a_file() -> None:
    Path("file").write_text("")
    check(meta_train(TINY, "--run-dir", "file/run"), 2, "the run folder cannot be created", "file/run")


@pytest.mark.parametrize("folder", ["file", "file/run", "full", "x" * 5_000])
def test_a_wrong_run_folder_is_noticed_before_data_is_loaded(
    folder: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("meta_train.run.setup.prepare", lambda config: pytest.fail("the run was prepared"))
    Path("file").write_text("")
    Path("full").mkdir()
    Path("full/file").write_text("")
    outcome = meta_train(TINY, "--run-dir", folder)
    assert outcome.code == 2 and outcome.err.startswith("meta-train: the run folder "), outcome.err
    assert sorted(path.name for path in Path().iterdir()) == ["file", "full"]


def test_a_runs_folder_on_a_disk_that_is_gone() -> None:
    Path("runs").symlink_to("unmounted/runs")
    check(meta_train(TINY), 2, "the run folder cannot be created", "runs")


@pytest.mark.skipif(not Path("/proc/self").exists(), reason="needs /proc, where even root cannot write")
def test_a_folder_where_nobody_may_write() -> None:
    check(meta_train(TINY, "--run-dir", "/proc/run"), 2, "the run folder cannot be created", "/proc/run")


@pytest.mark.skipif(os.geteuid() == 0, reason="root may write everywhere")
def test_a_read_only_folder() -> None:
    Path("locked").mkdir(mode=0o500)
    check(
        meta_train(TINY, "--run-dir", "locked/run"),
        2,
        "the run folder cannot be created",
        "Permission denied",
    )


def test_resuming_a_folder_without_a_run() -> None:
    check(meta_train("--resume", "."), 2, "there is no run to resume in", "config.yaml is missing")


def test_a_run_whose_checkpoints_were_removed(tiny_run: Run) -> None:
    """It made updates, which a new start would overwrite."""
    folder = unfinished(tiny_run)
    shutil.rmtree(folder / "checkpoints")
    before = digests(folder)
    check(meta_train("--resume", folder), 2, "There is no checkpoint in", "run/checkpoints")
    assert digests(folder) == before


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
    may_change = "only devices, chunk, native, wandb, data_dir, updates may change"
    check(outcome, 2, "the run to be resumed has a different configuration", changed, may_change)
    assert digests(tiny_run.path) == before


@pytest.mark.parametrize("flags", ["--devices 4", "--chunk 2", "--wandb offline", "--data-dir ."])
def test_what_may_change_on_a_resume(flags: str, tiny_run: Run) -> None:
    outcome = meta_train("--resume", tiny_run.path, flags)
    assert (outcome.code, "is finished" in outcome.err) == (0, True)


def test_fewer_updates_on_a_resume(tiny_run: Run) -> None:
    outcome = meta_train("--resume", tiny_run.path, "--updates", 2)
    check(outcome, 2, "a resume may only increase the number", "--updates is 2", "has 3;")


@pytest.mark.parametrize("content", ["[]", "null", "[" * 100_000, "{", "\0" * 80])
def test_a_summary_of_anything_else(content: str, caplog: pytest.LogCaptureFixture) -> None:
    """Such a run is not finished: its report is written again."""
    folder = RunFolder(Path("run"))
    folder.report.mkdir(parents=True)
    (folder.report / "summary.json").write_text('{"updates": 3}')
    assert folder.finished(3) and not folder.finished(4)
    (folder.report / "summary.json").write_text(content)
    assert not folder.finished(3)
    said = "is damaged: the comparison is made again"
    assert f"run/report/summary.json {said}" in caplog.text and said in PAGE


def unfinished(run: Run) -> Path:
    """A copy of a run from before its optimizer was written."""
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


@pytest.mark.slow
def test_a_run_folder_with_square_brackets_is_printed_as_it_is(no_comparing: None) -> None:
    """In Rich they are markup, and ``[/x]`` is an error."""
    outcome = meta_train(TINY, "--updates 3 --devices 2 --run-dir", Path("a[b]/c[/x]"))
    assert outcome.code == 0 and "a[b]/c[/x]: digits-mlp" in outcome.err, outcome.err
    assert "report: a[b]/c[/x]/report" in outcome.err
