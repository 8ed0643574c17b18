"""A full disk: nothing is lost, and with free space the run ends with the same bits."""

from __future__ import annotations

import shutil
from pathlib import Path
from unittest import mock

import pytest

from tests.marks import slow
from tests.meta_train.command import (
    TINY,
    Outcome,
    Run,
    at_update,
    lines,
    meta_train,
    start,
)
from tests.meta_train.failures.disk import NO_SPACE, full_disk_at
from tests.meta_train.failures.messages import check, digests


def resumed_to_the_same_bits(run: Run) -> None:
    """Resume the folder `run`, and check that it ends with the same bits."""
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
    check(outcome, 1, "a file could not be read or written", "No space left on device", "--resume")
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


@pytest.mark.parametrize("file", [slow("config.yaml"), "optimizer.safetensors", slow("report/summary.json")])
def test_a_full_disk_at_a_file(file: str, tiny_run: Run, no_comparing: None) -> None:
    """No existing file is lost, and with free space the run completes."""
    shutil.copytree(tiny_run.path, "run")
    Path("run/report/summary.json").unlink()
    before = digests(Path("run"))
    with full_disk_at(Path("run") / file):
        outcome = meta_train("--resume", "run")
    check(outcome, 1, "a file could not be read or written", "No space left on device")
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
    """With the operating system's file size limit, in a separate process."""
    shutil.copytree(tiny_run.path, "run")
    before = digests(Path("run"))

    with start("--resume", "run", "--updates", 100, program=WITHIN_4_KIB) as child:
        _, said = child.communicate(timeout=300)
    check(Outcome(child.returncode, "", said), 1, "could not be saved in", "file too large")
    after = digests(Path("run"))
    kept = [name for name in before if "config.yaml" not in name and "metrics.jsonl" not in name]
    assert {name: after[name] for name in kept} == {name: before[name] for name in kept}
    assert lines(Path("run"))[:3] == lines(tiny_run.path)
