"""A run that is killed, or whose disk is full, before its first checkpoint: it can be resumed."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest

import learned_opt
from tests.meta_train.command import TINY, Outcome, Run, lines, meta_train
from tests.meta_train.failures.disk import NO_SPACE, full_disk_at
from tests.meta_train.failures.messages import check, digests

NEW = f"{TINY} --updates 3 --checkpoint-every 2 --devices 2 --run-dir run"


def assert_begins(outcome: Outcome, run: Run) -> None:
    """Check that a run was resumed from its start, and ended like an uninterrupted one."""
    assert outcome.code == 0, outcome.err
    assert "resumed run at update 0" in outcome.err
    assert Path("run/optimizer.safetensors").read_bytes() == run.optimizer
    assert lines(Path("run")) == lines(run.path)


def test_a_run_without_a_checkpoint(tiny_run: Run, no_comparing: None) -> None:
    """What a kill left of the first checkpoint, and of a file, is removed."""
    Path("run/checkpoints/0.unfinished.orbax-checkpoint-tmp").mkdir(parents=True)
    Path("run/config.yaml.0a1b2c3d.partial").write_text("")
    shutil.copy(tiny_run.path / "config.yaml", "run")
    assert_begins(meta_train("--resume run"), tiny_run)
    assert {path.name for path in Path("run/checkpoints").iterdir()} == {"0", "2", "3"}
    assert not list(Path("run").glob("*.partial"))


@pytest.mark.slow
def test_a_first_checkpoint_that_is_damaged(tiny_run: Run, no_comparing: None) -> None:
    Path("run/checkpoints/0").mkdir(parents=True)
    shutil.copy(tiny_run.path / "config.yaml", "run")
    assert_begins(meta_train("--resume run"), tiny_run)


@pytest.mark.slow
def test_a_start_from_other_weights(tiny_run: Run, no_comparing: None) -> None:
    """The weights are copied when a run begins, so also when it begins again."""
    flags = f"{NEW} --start-from {tiny_run.path}"
    assert meta_train(flags).code == 0
    whole = digests(Path("run"))
    config = Path("run/config.yaml").read_text()
    shutil.rmtree("run")
    Path("run").mkdir()
    Path("run/config.yaml").write_text(config)
    assert meta_train("--resume run").code == 0
    for name in ("start.safetensors", "optimizer.safetensors"):
        assert digests(Path("run"))[f"run/{name}"] == whole[f"run/{name}"]
    assert learned_opt.read("run").metadata["meta_training"]["start_from"]


@pytest.mark.slow
def test_a_run_that_was_killed_before_its_configuration(tiny_run: Run, no_comparing: None) -> None:
    Path("run").mkdir()
    for name in ("lock", "config.yaml.0a1b2c3d.partial"):
        Path("run", name).write_text("")
    check(meta_train("--resume run"), 2, "there is no run to resume in")
    assert meta_train(NEW).code == 0
    assert Path("run/optimizer.safetensors").read_bytes() == tiny_run.optimizer


def test_a_full_disk_at_the_configuration() -> None:
    with full_disk_at(Path("run/config.yaml")):
        check(meta_train(NEW), 2, "the run folder cannot be created", "No space left on device")
    assert [path.name for path in Path("run").iterdir()] == ["lock"]  # so the same command can be given again


@pytest.mark.slow
@pytest.mark.parametrize("place", ["run/checkpoints", "run/metrics.jsonl"])
def test_a_full_disk_at_the_first_checkpoint(place: str, tiny_run: Run, no_comparing: None) -> None:
    with full_disk_at(Path(place)):
        outcome = meta_train(NEW)
    assert outcome.code == 1 and NO_SPACE.strerror.lower() in outcome.err.lower(), outcome.err
    assert_begins(meta_train("--resume run"), tiny_run)
