"""A run of two processes: the same bits as with one, and an orderly end when one is lost."""

from __future__ import annotations

import shutil
import signal
import socket
import subprocess
import time
from collections.abc import Sequence
from pathlib import Path

import pytest

from learned_opt import UserError
from meta_train.devices import processes
from meta_train.run.config import Config, to_dict
from tests.meta_train.command import TINY, Run, digest, lines, meta_train, start

SECONDS = 240  # to connect, compile and run


def free_port() -> int:
    """A port that no program listens on."""
    with socket.socket() as free:
        free.bind(("localhost", 0))
        return free.getsockname()[1]


def start_two(
    *argv: object, each: Sequence[str] = ("", ""), programs: Sequence[str | None] = (None, None)
) -> list[subprocess.Popen[str]]:
    """Start two processes of one run, with a device each, and with flags and programs of their own."""
    flags = f"--devices 2 --coordinator localhost:{free_port()} --processes 2 --process-id"
    return [start(*argv, flags, index, each[index], program=programs[index]) for index in range(2)]


def end(processes: list[subprocess.Popen[str]]) -> list[tuple[int, str]]:
    """The exit code and the output of each process."""
    wrote = [process.communicate(timeout=SECONDS)[1] for process in processes]
    return [(process.returncode, err) for process, err in zip(processes, wrote, strict=True)]


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
    both = start_two("--resume", tmp_path / "run", "--updates 100000")
    wait_for_line(tmp_path / "run", 55)
    both[1].send_signal(signal.SIGTERM)
    ended = end(both)
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
    both = start_two("--resume", tmp_path / "run", "--updates 100000")
    wait_for_line(tmp_path / "run", 100)
    both[killed].kill()
    code, err = end([both[1 - killed]])[0]
    assert code == 1
    assert "another process of this run has ended or cannot be reached" in err.splitlines()[-1], err
    assert "with --resume and the folder of the run" in err.splitlines()[-1]
    end([both[killed]])
    alone = start("--resume", tmp_path / "run", "--devices 1 --updates 100000")
    wait_for_line(tmp_path / "run", 150)
    alone.send_signal(signal.SIGTERM)
    code, err = end([alone])[0]
    assert code == 143 and "resumed" in err, err


def test_a_port_in_use() -> None:
    with socket.create_server(("127.0.0.1", 0)) as server:
        port = server.getsockname()[1]
        outcome = meta_train(f"--coordinator localhost:{port} --processes 2 --process-id 0")
    says = f"cannot listen on the port of --coordinator, {port} (Address already in use)"
    assert outcome.code == 2 and says in outcome.err and outcome.err.count("\n") == 1


def test_the_port_that_the_cluster_gives_is_checked(monkeypatch: pytest.MonkeyPatch) -> None:
    slurm = {"JOB_ID": "7", "STEP_NODELIST": "node[1-2]", "NTASKS": "2", "PROCID": "0", "LOCALID": "0"}
    for name, value in slurm.items():
        monkeypatch.setenv(f"SLURM_{name}", value)
    with socket.create_server(("127.0.0.1", 0)) as server:
        port = server.getsockname()[1]
        monkeypatch.setenv("JAX_COORDINATOR_PORT", str(port))
        outcome = meta_train("--coordinator auto")
    says = f"cannot listen on the port of --coordinator, {port} (Address already in use)"
    assert outcome.code == 2 and says in outcome.err and outcome.err.count("\n") == 1


def test_no_cluster() -> None:
    outcome = meta_train("--coordinator auto")
    assert outcome.code == 2 and "JAX does not detect a cluster (Slurm, " in outcome.err


def start_one_of_two(index: int, seconds: int) -> subprocess.Popen[str]:
    """Start one of two processes, and return when it waits for the other, for so many seconds."""
    # It is started as by a watcher, whose pipe stays open.
    program = f"""
import os, sys
import jax
from meta_train.commands import entry_points, watcher
from meta_train.devices import processes
def announced(*given, **named):
    print("waits", file=sys.stderr, flush=True)
    initialize(*given, **named)
initialize, jax.distributed.initialize = jax.distributed.initialize, announced
processes.START_TIMEOUT = {seconds}
os.environ[watcher.WATCHED] = "1"
sys.stdin = open(os.pipe()[0])
entry_points.meta_train()
"""
    flags = f"--coordinator localhost:{free_port()} --processes 2 --process-id"
    process = start(flags, index, program=program)
    assert process.stderr and process.stderr.readline() == "waits\n"
    return process


@pytest.mark.parametrize("index", [0, 1])
def test_a_process_that_is_never_started(index: int) -> None:
    ((code, err),) = end([start_one_of_two(index, seconds=2)])
    assert code == 1 and "not all 2 processes of the run were started within 2 s" in err
    assert err.count("\n") == 1, err


def test_ctrl_c_ends_the_wait_for_other_processes() -> None:
    process = start_one_of_two(0, seconds=300)
    process.send_signal(signal.SIGINT)
    assert end([process]) == [(130, "meta-train: stopped by Ctrl-C\n")]


def test_processes_with_different_settings_are_told_which() -> None:
    settings = to_dict(Config()) | {"resume": False}
    processes.check_same([settings, dict(settings)])
    with pytest.raises(UserError, match="process 2 was started with --seed 1, but process 0 with 0;"):
        processes.check_same([settings, settings, settings | {"seed": 1}])
    with pytest.raises(
        UserError, match="process 1 was started with --resume True, but process 0 with False;"
    ):
        processes.check_same([settings, settings | {"resume": True}])


@pytest.mark.slow
def test_a_process_with_another_setting_ends_all(tmp_path: Path) -> None:
    ended = end(
        start_two(TINY, "--run-dir", tmp_path / "run", each=("--outer.learning-rate 0.02", "--seed 1"))
    )
    for code, err in ended:
        said = err.splitlines()[-1]
        assert code == 2 and said.startswith("meta-train: process 1 was started with --seed 1, but process 0")
    assert not (tmp_path / "run").exists()


@pytest.mark.slow
def test_a_process_may_take_longer_than_the_others_to_load_its_data(
    fifty_updates: Run, tmp_path: Path
) -> None:
    """More than the 30 s that XLA waits when devices first communicate on a CPU."""
    late = """
import sys, time
from meta_train.commands import exit_codes, meta_train
from meta_train.run import setup
prepare = setup.prepare
def late(*arguments):
    made = prepare(*arguments)
    time.sleep(40)
    return made
setup.prepare = late
sys.exit(exit_codes.exit_code_of("meta-train", meta_train.command, sys.argv[1:]))
"""
    flags = (TINY, "--updates 50 --checkpoint-every 20 --run-dir", tmp_path / "run")
    for code, err in end(start_two(*flags, programs=(None, late))):
        assert code == 0, err
    assert digest(tmp_path / "run") == digest(fifty_updates.path)


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
