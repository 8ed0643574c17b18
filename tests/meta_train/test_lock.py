"""One process at a time uses a folder, and another one is told which."""

from __future__ import annotations

import errno
import fcntl
import os
import re
import signal
import socket
import subprocess
import sys
from pathlib import Path
from unittest import mock

import pytest

from learned_opt import UserError
from meta_train.run.folder import new_folder
from meta_train.run.lock import _is_local, locked
from tests.meta_train.command import ROOT, TINY, Outcome, Run, at_update, learned_opt, lines, meta_train

IN_USE = rf"is in use by process \d+ on {re.escape(socket.gethostname())}, since \d{{4}}-\d\d-\d\d \d\d:\d\d"


def test_the_lock_says_who_holds_it(tmp_path: Path) -> None:
    with locked(tmp_path):
        with pytest.raises(UserError, match=IN_USE) as refused, locked(tmp_path):
            pass
        assert f"process {os.getpid()} on" in str(refused.value)
    with pytest.raises(ZeroDivisionError), locked(tmp_path):
        raise ZeroDivisionError
    with locked(tmp_path):
        pass
    assert (tmp_path / "lock").read_text() == ""


HOLD = """
import sys, time
from pathlib import Path
from meta_train.run.lock import locked

with locked(Path(sys.argv[1])):
    print("held", flush=True)
    time.sleep(600)
"""


def test_sigkill_releases_the_lock(tmp_path: Path) -> None:
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    command = [sys.executable, "-c", HOLD, str(tmp_path)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, env=environment) as child:
        assert child.stdout.readline() == b"held\n"
        with pytest.raises(UserError, match=f"is in use by process {child.pid} on"), locked(tmp_path):
            pass
        child.kill()
        assert child.wait() == -signal.SIGKILL
    with locked(tmp_path):
        pass


def test_a_lock_file_of_anything(tmp_path: Path) -> None:
    """What another program wrote reaches the terminal short and without control characters."""
    with (tmp_path / "lock").open("w") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        file.write("\x1b]0;x\x07" + "y" * 10_000)
        file.flush()
        with pytest.raises(UserError) as refused, locked(tmp_path):
            pass
    assert str(refused.value).removeprefix(str(tmp_path)).isprintable()
    assert len(str(refused.value)) < 500


def test_a_disk_without_locks_is_said(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    failed = OSError(errno.ENOLCK, os.strerror(errno.ENOLCK))
    with mock.patch("fcntl.flock", side_effect=failed), locked(tmp_path):
        pass
    assert f"The disk of {tmp_path} has no locks (No locks available)" in caplog.text


@pytest.mark.parametrize(
    ("options", "local"),
    [
        ("nfs4 server:/runs rw,vers=4.2,hard,local_lock=none", False),
        ("nfs server:/runs rw,vers=3,nolock,local_lock=all", True),
        ("nfs server:/runs rw,vers=3,local_lock=flock", True),
        ("lustre server:/runs rw,flock", False),
        ("lustre server:/runs rw,localflock", True),
    ],
)
def test_locks_that_other_hosts_do_not_see(options: str, local: bool, tmp_path: Path) -> None:
    device = os.stat(tmp_path).st_dev
    mount = f"36 35 {os.major(device)}:{os.minor(device)} / /runs rw,noatime shared:1 - {options}\n"
    other = "37 35 0:999 / /other rw - nfs server:/other rw,nolock\n"
    (tmp_path / "mountinfo").write_text(other + mount)
    assert _is_local(tmp_path, tmp_path / "mountinfo") == local


@pytest.mark.slow
def test_a_run_that_is_running_is_not_resumed(tiny_run: Run, tmp_path: Path, no_comparing: None) -> None:
    """Two processes in one folder would write twice as many lines, and another optimizer."""
    second: list[Outcome] = []
    with at_update(2, lambda: second.append(meta_train("--resume", tmp_path / "run"))):
        first = meta_train(TINY, "--updates 3 --checkpoint-every 2 --devices 2 --run-dir", tmp_path / "run")
    assert first.code == 0, first.err
    assert second[0].code == 2
    assert re.search(IN_USE, second[0].err)
    assert (tmp_path / "run" / "optimizer.safetensors").read_bytes() == tiny_run.optimizer
    assert lines(tmp_path / "run") == lines(tiny_run.path)


def test_a_new_folder_that_another_process_has_just_created(tmp_path: Path) -> None:
    with locked(tmp_path):
        outcome = meta_train(TINY, "--run-dir", tmp_path)
        assert outcome.code == 2 and re.search(IN_USE, outcome.err), outcome.err
    assert [path.name for path in tmp_path.iterdir()] == ["lock"]


def test_experiments_lock_their_folder(tmp_path: Path) -> None:
    with (
        locked(tmp_path),
        pytest.raises(UserError, match="is in use by process"),
        new_folder(tmp_path, tmp_path, what="result folder", advice="choose another with --out"),
    ):
        pass


def test_a_comparison_locks_its_folder(tmp_path: Path) -> None:
    with locked(tmp_path):
        outcome = learned_opt("evaluate adam --tasks digits-mlp --seeds 1 --devices 1 --out", tmp_path)
    assert outcome.code == 2 and re.search(IN_USE, outcome.err), outcome.err
