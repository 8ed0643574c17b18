"""The tasks that docs/adding-a-task.md makes from models and examples, meta-trained for 50 updates."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from tests.marks import slow
from tests.meta_train.command import lines, meta_train
from tests.test_docs import DOCS, files_of

SIZES = {
    "my_images:images": "--task.hidden 8 --task.batch-size 16 --task.horizon 20",
    "my_language:language": "--task.hidden 8 --task.batch-size 2 --task.horizon 20",
    "my_mixture:mixture": "--task.hidden 8 --task.batch-size 8 --task.horizon 20",
}


@pytest.fixture
def own_tasks(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, own_registry: None) -> Path:
    """A folder with the files of the page."""
    for name, text in files_of(DOCS / "adding-a-task.md"):
        (tmp_path / name).write_text(text)
    monkeypatch.syspath_prepend(tmp_path)
    return tmp_path


@pytest.mark.usefixtures("no_comparing")
@pytest.mark.parametrize(
    "name", ["my_images:images", slow("my_language:language"), slow("my_mixture:mixture")]
)
def test_fifty_updates(name: str, own_tasks: Path) -> None:
    """A convolutional network with batch statistics, a transformer, and both; the meta-loss falls."""
    outcome = meta_train(
        f"--task {name} --updates 50 --optimizer mlp --outer.learning-rate 0.05 {SIZES[name]}",
        "--estimator.truncation 5 --estimator.particles 4 --devices 1 --wandb disabled",
        "--run-dir",
        own_tasks / "run",
    )
    assert outcome.code == 0, outcome.err
    losses = [line["loss"] for line in lines(own_tasks / "run")]
    assert len(losses) == 50
    assert np.mean(losses[-10:]) < 0.99 * np.mean(losses[:10])
