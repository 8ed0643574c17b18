"""Weights & Biases that cannot be reached."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

from meta_train.run import tracking
from tests.meta_train.command import (
    TINY,
    Run,
    meta_train,
)
from tests.meta_train.failures.messages import PAGE


@pytest.mark.slow
def test_wandb_not_reachable(
    tiny_run: Run, monkeypatch: pytest.MonkeyPatch, closed_port: int, no_comparing: None
) -> None:
    monkeypatch.setenv("WANDB_API_KEY", "0123456789" * 4)
    monkeypatch.setenv("WANDB_BASE_URL", f"http://127.0.0.1:{closed_port}")
    for name in ("WANDB_DATA_DIR", "WANDB_CACHE_DIR", "WANDB_ERROR_REPORTING"):
        monkeypatch.setenv(name, "")  # so that monkeypatch undoes the tracker's changes
        monkeypatch.delenv(name)
    monkeypatch.setattr(tracking, "ONLINE_TIMEOUT", 1.0)
    flags = "--updates 3 --checkpoint-every 2 --devices 2 --run-dir run --wandb online"
    outcome = meta_train(TINY, flags)
    assert outcome.code == 0, outcome.err
    assert "W&B: not reachable (" in outcome.err and ", continuing offline" in outcome.err
    assert "W&B: not reachable" in PAGE
    assert (Path("run") / "optimizer.safetensors").read_bytes() == tiny_run.optimizer
    assert "wandb" in sys.modules
