"""A run of two processes: the same bits as with one, and an orderly end when one is lost."""

from __future__ import annotations

import shutil
import signal
import socket
import subprocess
import time
from pathlib import Path

import pytest

import learned_opt
from tests.meta_train.command import TINY, Run, lines, meta_train, start

SECONDS = 240  # to connect, compile and run


def start_two(*argv: object) -> list[subprocess.Popen[str]]:
    """Start two processes of one run, with a device each."""
    with socket.socket() as free:
        free.bind(("localhost", 0))
        port = free.getsockname()[1]
    flags = f"--devices 2 --coordinator localhost:{port} --processes 2 --process-id"
    return [start(*argv, flags, index) for index in range(2)]


def end(processes: list[subprocess.Popen[str]]) -> list[tuple[int, str]]:
    """The exit code and the output of each process."""
    wrote = [process.communicate(timeout=SECONDS)[1] for process in processes]
    return [(process.returncode, err) for process, err in zip(processes, wrote, strict=True)]


def digest(folder: Path) -> str:
    """The digest of the learned weights."""
    return learned_opt.read(folder / "optimizer.safetensors").metadata["digest"]


def wait_for_line(folder: Path, count: int) -> None:
    """Wait until `count` updates are in the metrics file."""
    deadline = time.monotonic() + SECONDS
    while not (folder / "metrics.jsonl").exists() or len(lines(folder)) < count:
        assert time.monotonic() < deadline
        time.sleep(0.05)


@pytest.mark.slow
def test_two_processes_give_the_bits_of_one(fifty_updates: Run, tmp_path: Path) -> None:
    (code, err), (other_code, other_err) = end(
        start_two(TINY, "--updates 50 --checkpoint-every 20 --run-dir", tmp_path / "run")
    )
    assert (code, other_code) == (0, 0), err + other_err
    assert "on 2 devices" in err and "report:" in err
    # The second process prints no report.
    assert "devices" not in other_err and "report:" not in other_err
    assert digest(tmp_path / "run") == digest(fifty_updates.path)
    assert lines(tmp_path / "run") == lines(fifty_updates.path)


@pytest.mark.slow
def test_two_processes_go_on_from_the_newest_checkpoint_of_both(fifty_updates: Run, tmp_path: Path) -> None:
    """As if the second process had been killed before it saved its last checkpoint."""
    ended = end(start_two(TINY, "--updates 50 --checkpoint-every 20 --run-dir", tmp_path / "run"))
    assert [code for code, _ in ended] == [0, 0], ended
    parts = tmp_path / "run" / "checkpoints"
    assert {path.name for path in parts.iterdir()} == {"part-1-of-2", "part-2-of-2"}
    shutil.rmtree(parts / "part-2-of-2" / "50")
    shutil.rmtree(tmp_path / "run" / "report")
    (tmp_path / "run" / "optimizer.safetensors").unlink()
    shutil.copytree(tmp_path / "run", tmp_path / "alone")
    outcome = meta_train("--resume", tmp_path / "alone", "--devices 1")
    assert outcome.code == 0 and "at update 40" in outcome.err, outcome.err
    assert sorted(path.name for path in (tmp_path / "alone" / "checkpoints").iterdir()) == ["40", "50"]
    for (code, err), folder in zip(
        end(start_two("--resume", tmp_path / "run")), ("run", "alone"), strict=True
    ):
        assert code == 0, err
        assert digest(tmp_path / folder) == digest(fifty_updates.path)
        assert lines(tmp_path / folder) == lines(fifty_updates.path)


def test_a_signal_to_one_stops_both_and_two_go_on_from_one(fifty_updates: Run, tmp_path: Path) -> None:
    # This run was saved by one process.
    shutil.copytree(fifty_updates.path, tmp_path / "run")
    processes = start_two("--resume", tmp_path / "run", "--updates 100000")
    wait_for_line(tmp_path / "run", 55)
    processes[1].send_signal(signal.SIGTERM)
    ended = end(processes)
    assert [code for code, _ in ended] == [143, 143], ended
    assert "and saved; continue with: meta-train --resume" in ended[0][1]
    saved = len(lines(tmp_path / "run"))
    for part in (1, 2):
        assert (tmp_path / "run" / "checkpoints" / f"part-{part}-of-2" / str(saved)).exists()


@pytest.mark.slow
@pytest.mark.parametrize("killed", [0, 1])
def test_when_one_is_killed_the_other_ends_and_says_why(
    fifty_updates: Run, tmp_path: Path, killed: int
) -> None:
    shutil.copytree(fifty_updates.path, tmp_path / "run")
    processes = start_two("--resume", tmp_path / "run", "--updates 100000")
    wait_for_line(tmp_path / "run", 100)
    processes[killed].kill()
    code, err = end([processes[1 - killed]])[0]
    assert code == 1
    assert "another process of this run has ended" in err.splitlines()[-1]
    assert "with --resume and the folder of the run" in err.splitlines()[-1]
    end([processes[killed]])
    alone = start("--resume", tmp_path / "run", "--devices 1 --updates 100000")
    wait_for_line(tmp_path / "run", 150)
    alone.send_signal(signal.SIGTERM)
    code, err = end([alone])[0]
    assert code == 143 and "resumed" in err, err


@pytest.mark.parametrize(
    ("flags", "words"),
    [
        ("--processes 2", "need --coordinator HOST:PORT"),
        ("--coordinator 10.0.0.1", "give HOST:PORT of process 0, such as 10.0.0.1:1234, or auto"),
        ("--coordinator localhost:0 --processes 2 --process-id 0", "--coordinator is localhost:0"),
        ("--coordinator localhost:1234", "needs --processes and --process-id"),
        (
            "--coordinator localhost:1234 --processes 2 --process-id 2",
            "--process-id is 2 and --processes is 2",
        ),
        ("--coordinator auto --processes 2", "leave them out"),
    ],
)
def test_flags_that_cannot_work(flags: str, words: str) -> None:
    outcome = meta_train(flags)
    assert outcome.code == 2 and words in outcome.err
    assert not Path("runs").exists()
