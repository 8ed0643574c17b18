"""Runs that were stopped in any way and resumed end with the same bits as uninterrupted ones."""

from __future__ import annotations

import json
import os
import pty
import select
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from random import Random
from unittest import mock

import pytest
import yaml

import learned_opt
from learned_opt import UserError
from meta_train.commands.terminal import LastingStream
from meta_train.run.interrupt import StopRequest
from meta_train.run.lock import locked
from tests.marks import slow
from tests.meta_train.command import (
    ROOT,
    TINY,
    Outcome,
    Run,
    at_update,
    digest,
    lines,
    meta_train,
    start,
    without_comparing,
    words,
)


@pytest.fixture(autouse=True)
def closed_terminals_are_noticed() -> Iterator[None]:
    """pytest itself may run under `nohup`, whose children ignore SIGHUP."""
    before = signal.signal(signal.SIGHUP, signal.SIG_DFL)
    yield
    signal.signal(signal.SIGHUP, before)


CODES = {signal.SIGTERM: 143, signal.SIGINT: 130, signal.SIGHUP: 129}


def run_fifty(folder: Path) -> Outcome:
    """Make the run of ``fifty_updates`` in another folder."""
    return meta_train(TINY, "--updates 50 --checkpoint-every 20 --devices 2 --run-dir", folder)


def assert_same(folder: Path, run: Run) -> None:
    """Check that a folder has the optimizer and the metrics of an uninterrupted run."""
    assert (folder / "optimizer.safetensors").read_bytes() == run.optimizer
    assert lines(folder) == lines(run.path)


def test_a_resumed_run_has_the_same_mean_of_theta(tmp_path: Path, no_comparing: None) -> None:
    flags = ("--updates 4 --checkpoint-every 1 --outer.average 0.75 --devices 2 --run-dir", tmp_path)
    assert meta_train(TINY, *flags).code == 0
    whole = (tmp_path / "optimizer.safetensors").read_bytes()
    for update in (3, 4):
        shutil.rmtree(tmp_path / "checkpoints" / str(update))
    shutil.rmtree(tmp_path / "report")
    (tmp_path / "optimizer.safetensors").unlink()
    assert meta_train("--resume", tmp_path).code == 0
    assert (tmp_path / "optimizer.safetensors").read_bytes() == whole


@pytest.mark.parametrize("number", [signal.SIGTERM, slow(signal.SIGINT), slow(signal.SIGHUP)])
@pytest.mark.parametrize("devices", [slow(1), slow(2), 4])
def test_a_signal_saves_and_the_resumed_run_ends_in_the_same_bits(
    number: signal.Signals, devices: int, fifty_updates: Run, tmp_path: Path, no_comparing: None
) -> None:
    handlers = [signal.getsignal(n) for n in CODES]

    def interrupt() -> None:
        with pytest.raises(UserError, match="is in use by process"), locked(tmp_path):
            pass
        signal.raise_signal(number)

    with at_update(23, interrupt):
        outcome = run_fifty(tmp_path)
    assert outcome.code == CODES[number]
    assert outcome.err.splitlines()[-1] == (
        f"meta-train: stopped at update 23 of 50 and saved; continue with: meta-train --resume {tmp_path}"
    )
    assert [signal.getsignal(n) for n in CODES] == handlers
    assert len(lines(tmp_path)) == 23
    assert not (tmp_path / "optimizer.safetensors").exists()

    outcome = meta_train("--resume", tmp_path, "--devices", devices)
    assert outcome.code == 0, outcome.err
    assert f"resumed {tmp_path} at update 23" in outcome.err
    assert_same(tmp_path, fifty_updates)
    assert yaml.safe_load((tmp_path / "config.yaml").read_text())["devices"] == devices


def test_updates_after_the_checkpoint_are_made_again(
    fifty_updates: Run, tmp_path: Path, no_comparing: None
) -> None:
    """After a crash between checkpoints, lines after the last checkpoint are removed and written again."""

    def crash() -> None:
        raise OSError("pulled the plug")

    with at_update(33, crash):
        assert run_fifty(tmp_path).code == 1
    with (tmp_path / "metrics.jsonl").open("a") as file:
        file.write('{"update": 34, "lo')
    outcome = meta_train("--resume", tmp_path)
    assert f"resumed {tmp_path} at update 20" in outcome.err
    assert_same(tmp_path, fifty_updates)


@pytest.mark.parametrize("number", [slow(signal.SIGTERM), signal.SIGINT])
def test_a_signal_during_the_comparison(number: signal.Signals, tiny_run: Run, tmp_path: Path) -> None:
    folder = shutil.copytree(tiny_run.path, tmp_path / "run")
    shutil.rmtree(folder / "report")
    (folder / "optimizer.safetensors").unlink()

    def interrupted(*args: object, watch, **kwargs: object) -> None:
        with watch("adam") as advance:
            advance(1, 3)
            signal.raise_signal(number)
            advance(2, 3)

    with mock.patch("meta_train.run.learning.compare", interrupted):
        outcome = meta_train("--resume", folder)
    assert outcome.code == CODES[number]
    assert outcome.err.splitlines()[-1] == (
        f"meta-train: stopped during the comparison; continue with: meta-train --resume {folder}"
    )
    # The file is written before the comparison; the model card is added after it.
    before, whole = (learned_opt.read(path).metadata for path in (folder, tiny_run.path))
    assert before == whole | {"comparisons": []}
    with without_comparing(tiny_run.comparison):
        assert meta_train("--resume", folder).code == 0
    assert_same(folder, tiny_run)
    assert (folder / "report" / "summary.json").read_bytes() == (
        tiny_run.path / "report" / "summary.json"
    ).read_bytes()


STOPPABLE = """
import time
from meta_train.run.interrupt import StopRequest

with StopRequest() as stop:
    print("ready", flush=True)
    while stop.signal is None:
        time.sleep(0.01)
    print("asked", flush=True)
    time.sleep(600)
"""


@pytest.mark.parametrize("first", [signal.SIGINT, slow(signal.SIGTERM)])
def test_a_second_ctrl_c_ends_it_at_once(first: int) -> None:
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    with subprocess.Popen(
        [sys.executable, "-c", STOPPABLE], stdout=subprocess.PIPE, env=environment
    ) as child:
        assert child.stdout.readline() == b"ready\n"
        child.send_signal(first)
        assert child.stdout.readline() == b"asked\n"
        child.send_signal(signal.SIGINT)
        assert child.wait(60) == -signal.SIGINT  # 130 in a shell


def test_sighup_is_a_request_unless_it_is_ignored() -> None:
    """`nohup` lets a program ignore it, so that it goes on when the terminal is closed."""
    before = signal.getsignal(signal.SIGHUP)
    try:
        for handler, expected in ((signal.SIG_DFL, signal.SIGHUP), (signal.SIG_IGN, None)):
            signal.signal(signal.SIGHUP, handler)
            with StopRequest() as stop:
                signal.raise_signal(signal.SIGHUP)
                assert stop.signal == expected
            assert signal.getsignal(signal.SIGHUP) == handler
    finally:
        signal.signal(signal.SIGHUP, before)


def test_output_that_nobody_can_read_is_dropped() -> None:
    reader, writer = os.pipe()
    with LastingStream(os.fdopen(writer, "wb"), "utf-8", line_buffering=True) as stream:
        print("read", file=stream)
        assert os.read(reader, 100) == b"read\n"
        os.close(reader)
        for _ in range(3):
            print("dropped", file=stream)


@pytest.mark.slow
def test_a_terminal_that_is_closed(long_run: Run, tmp_path: Path, no_comparing: None) -> None:
    folder = tmp_path / "run"
    terminal, inside = pty.openpty()
    program = "import fcntl, termios; fcntl.ioctl(2, termios.TIOCSCTTY, 0)\n"
    program += "from meta_train.commands.entry_points import meta_train; meta_train()"
    child = subprocess.Popen(
        [sys.executable, "-c", program, *words(LONG, "--devices 2 --run-dir", folder)],
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        stdin=inside,
        stdout=inside,
        stderr=inside,
        start_new_session=True,
    )
    os.close(inside)
    while made(folder) < 50:
        if select.select([terminal], [], [], 0.05)[0]:
            os.read(terminal, 10_000)
    os.close(terminal)
    assert child.wait(120) == 129
    assert 50 <= made(folder) < 300
    assert meta_train("--resume", folder).code == 0
    assert_same(folder, long_run)


def test_a_finished_run_says_so(tiny_run: Run) -> None:
    outcome = meta_train("--resume", tiny_run.path)
    assert outcome.code == 0
    assert outcome.err == (
        f"{tiny_run.path} is finished: all 3 updates are done and the report is written "
        f"({tiny_run.path}/report); to continue, give a larger --updates\n"
    )


def test_more_updates_for_a_finished_run(tiny_run: Run, tmp_path: Path, no_comparing: None) -> None:
    folder = shutil.copytree(tiny_run.path, tmp_path / "run")
    outcome = meta_train("--resume", folder, "--updates", 5)
    assert outcome.code == 0, outcome.err
    assert f"resumed {folder} at update 3" in outcome.err
    assert lines(folder)[:3] == lines(tiny_run.path) and len(lines(folder)) == 5
    assert (folder / "optimizer.safetensors").read_bytes() != tiny_run.optimizer
    assert json.loads((folder / "report" / "summary.json").read_text())["updates"] == 5
    # The new number of updates is now part of the run.
    assert "all 5 updates are done" in meta_train("--resume", folder).err
    assert meta_train("--resume", folder, "--updates", 3).code == 2


# Many updates, so that a kill hits the middle of the run; few checkpoints, so that some updates are lost.
LONG = f"{TINY} --updates 300 --checkpoint-every 50"


@pytest.fixture(scope="module")
def long_run(tiny_run: Run, tmp_path_factory: pytest.TempPathFactory) -> Run:
    path = tmp_path_factory.mktemp("long") / "run"
    with without_comparing(tiny_run.comparison):
        outcome = meta_train(LONG, "--devices 2 --run-dir", path)
    return Run(path, outcome, tiny_run.comparison)


def made(folder: Path) -> int:
    """Number of updates in the metrics file, also of a run in progress or one that was killed."""
    metrics = folder / "metrics.jsonl"
    return metrics.read_bytes().count(b"\n") if metrics.exists() else 0


def wait_until(child: subprocess.Popen[str], folder: Path, updates: int) -> None:
    """Wait until `updates` updates are made, or the child has ended."""
    deadline = time.monotonic() + 300
    while child.poll() is None and made(folder) < updates and time.monotonic() < deadline:
        time.sleep(0.005)


@pytest.mark.slow
def test_sigkill_then_sigterm_then_the_end(long_run: Run, tmp_path: Path, no_comparing: None) -> None:
    """In separate processes, the last on another number of devices."""
    folder = tmp_path / "run"
    with start(LONG, "--devices 2 --run-dir", folder) as child:
        wait_until(child, folder, Random(0).randrange(1, 150))
        child.kill()
        assert child.wait(60) == -signal.SIGKILL
    with start("--resume", folder) as child:
        wait_until(child, folder, min(290, made(folder) + 60))
        child.terminate()
        _, said = child.communicate(timeout=300)
    assert child.returncode == 143, said
    assert said.splitlines()[-1].endswith(f"continue with: meta-train --resume {folder}")
    assert meta_train("--resume", folder, "--devices 4").code == 0
    assert_same(folder, long_run)


@pytest.mark.slow
@pytest.mark.parametrize("devices", [[2] * 6, [2, 1, 4, 1, 2, 4]], ids=["same", "other"])
def test_five_sigkills_at_random_moments(devices: list[int], long_run: Run, tmp_path: Path) -> None:
    """Four of them spread over the updates, and one while a resumed run starts."""
    folder, random = tmp_path / "run", Random(0)
    starting = random.randrange(1, 5)
    for attempt, count in enumerate(devices[:5]):
        begin = (LONG, "--run-dir") if attempt == 0 else ("--resume",)
        with start(*begin, folder, "--devices", count) as child:
            if attempt == starting:
                time.sleep(random.uniform(0, 4))
            else:
                wait_until(child, folder, random.randrange(60 * attempt, 60 * attempt + 60) + 1)
            child.kill()
            assert child.wait(60) == -signal.SIGKILL
        print(f"attempt {attempt}: killed at {made(folder)} updates")
    with start("--resume", folder, "--devices", devices[5]) as child:
        _, said = child.communicate(timeout=600)
    assert child.returncode == 0, said
    # The files differ in their cards, because only this run has compared its optimizer.
    assert digest(folder) == digest(long_run.path)
    assert lines(folder) == lines(long_run.path)
    assert (folder / "report" / "summary.json").is_file()
