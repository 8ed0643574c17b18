"""Code named in a file is imported only if the command line names it too."""

from __future__ import annotations

import hashlib
import json
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import save_file

import learned_opt
from tests.meta_train.command import learned_opt as learned_opt_command
from tests.meta_train.command import (
    meta_train,
)
from tests.meta_train.failures.messages import PAGE, check


@pytest.fixture
def gift(monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[[str], Path]]:
    """Make the folder of somebody else's run, whose code writes `executed` when it is imported."""
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


# Code named in a file: the flag that the user would have to add.
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
    # A name at another flag does not count, nor does a value for the flag in the configuration.
    flag, name = EVIL[config].split()
    assert meta_train("--config", folder / "config.yaml", "--run-dir", name).code == 2
    assert not Path("executed").exists()
    # With the flag, the code runs: the test can fail.
    meta_train("--config", folder / "config.yaml", EVIL[config], "--updates 0")
    assert Path("executed").exists()


def test_code_that_a_run_names_and_the_command_does_not(gift: Callable[[str], Path]) -> None:
    """The run's settings are read again for comparison with those of the command line."""
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
    check(meta_train("--resume", gift(config)), 2, "a value must not look like a flag")
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
