"""The sweep files with the real `wandb sweep` and `wandb agent`, against a W&B server of the tests' own."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import yaml

from tests.meta_train.command import ROOT, lines, words
from tests.meta_train.test_sweeps import draw, every_file, load
from tests.meta_train.wandb_backend import KEY, SWEEP, Backend, serve

# Added to the command of the sweep, as sweeps/README.md says; K is at most 50.
UPDATES = 400
TINY = (
    "--task.horizon 50 --task.hidden 4 4 --optimizer mlp --devices 2 "
    f"--evaluation.steps 5 --evaluation.seeds 1 --evaluation.learning-rates 2 --updates {UPDATES}"
)
# `wandb`, but its agent asks for commands every 0.2 s instead of every 5 s.
WANDB = """
from wandb import wandb_agent
from wandb.cli.cli import cli

wandb_agent.Agent.POLL_INTERVAL = 0.2
cli()
"""
LIMIT = 300.0  # seconds


@pytest.fixture
def backend() -> Iterator[Backend]:
    with serve() as backend:
        yield backend


Start = Callable[..., subprocess.Popen[str]]


@pytest.fixture
def wandb(tmp_path: Path, backend: Backend) -> Iterator[Start]:
    """Starts `wandb`, logged in to this server, with `meta-train` on the path."""
    command = tmp_path / "bin" / "meta-train"
    command.parent.mkdir()
    command.write_text(f'#!/bin/sh\nexec "{sys.executable}" -m meta_train "$@"\n')
    command.chmod(0o755)
    environment = {
        **os.environ,
        "HOME": str(tmp_path),
        "TMPDIR": str(tmp_path),
        "PATH": f"{command.parent}:{os.environ['PATH']}",
        "PYTHONPATH": str(ROOT),
        "WANDB_BASE_URL": backend.url,
        "WANDB_API_KEY": KEY,
        "WANDB_ERROR_REPORTING": "false",
    }
    started: list[subprocess.Popen[str]] = []

    def start(*argv: object) -> subprocess.Popen[str]:
        process = subprocess.Popen(
            [sys.executable, "-c", WANDB, *words(*argv)],
            cwd=tmp_path,
            env=environment,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )
        started.append(process)
        return process

    yield start
    for process in started:
        process.kill()


def ended(process: subprocess.Popen[str]) -> str:
    """What a process printed, once it has ended well."""
    out, _ = process.communicate(timeout=LIMIT)
    assert process.returncode == 0, out
    return out


def until_running(folder: Path) -> None:
    start = time.monotonic()
    while not ((folder / "metrics.jsonl").exists() and lines(folder)):
        assert time.monotonic() < start + LIMIT
        time.sleep(0.02)


@pytest.mark.slow
@every_file
def test_sweep(file: Path, tmp_path: Path, backend: Backend, wandb: Start) -> None:
    """A run that W&B stops, and one that is preempted, is handed out again and reaches its end."""
    sweep = load(file)
    at = sweep["command"].index("${args}")
    sweep["command"][at:at] = words(TINY)
    (tmp_path / "sweep.yaml").write_text(yaml.safe_dump(sweep))
    assert f"wandb agent {SWEEP}" in ended(wandb("sweep sweep.yaml"))
    assert backend.sweeps == [sweep]
    runs = tmp_path / "runs"
    first, second = draw(file, 2)

    backend.hand_out("first", first)
    agent = wandb("agent --count 1", SWEEP)
    until_running(runs / "digits-mlp-first")
    backend.stop("first")
    ended(agent)
    stopped = backend.runs["first"]
    assert stopped.exit_codes == [143]
    assert stopped.steps == [*range(1, len(lines(runs / "digits-mlp-first")) + 1)]
    assert backend.commands == []  # it is not handed out again

    backend.hand_out("second", second)
    agent = wandb("agent --forward-signals", SWEEP)
    folder = runs / "digits-mlp-second"
    until_running(folder)
    agent.send_signal(signal.SIGTERM)
    agent.communicate(timeout=LIMIT)
    run, done = backend.runs["second"], len(lines(folder))
    assert done < UPDATES
    assert run.exit_codes == [143]
    assert run.steps == [*range(1, done + 1)]
    (again,) = backend.commands
    assert (again["type"], again["run_id"]) == ("resume", "second")
    assert again["args"].keys() > {"_wandb", "task.hidden", "estimator.analytic", "data-dir", *second}

    ended(wandb("agent --count 1", SWEEP))
    assert sorted(runs.iterdir()) == [runs / "digits-mlp-first", folder]
    assert run.exit_codes == [143, 0]
    assert run.values.items() >= {**second, "task": "digits-mlp", "updates": UPDATES}.items()
    records = lines(folder)
    assert [record["update"] for record in records] == [*range(1, UPDATES + 1)]
    assert run.steps == [*range(1, UPDATES + 2)]  # the last is the comparison
    for record, row in zip(records, run.history, strict=False):
        del record["update"]
        assert row.items() >= {name: value for name, value in record.items() if value is not None}.items()
    learned = json.loads((folder / "report" / "summary.json").read_text())["optimizers"]["learned"]
    for ratio in ("ratio_to_best", "ratio_to_adam"):
        assert run.summary[ratio] == learned[ratio]
    assert "optimizer" in run.artifacts
    optimizer = (folder / "optimizer.safetensors").read_bytes()
    assert backend.uploads["artifact/optimizer.safetensors"] == optimizer
