"""After kills, full disks and folders that cannot be written, the files on disk stay usable."""

from __future__ import annotations

import errno
import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from unittest import mock

import numpy as np
import pytest

from checkpoints import CheckpointStore, orbax_files
from learned_opt._src.errors import LearnedOptError, UserError

LIKE = {"x": np.zeros(100_000)}


def state_of(update: int, size: int = 100_000) -> dict[str, np.ndarray]:
    return {"x": np.random.default_rng(update).standard_normal(size)}


DIE_WHILE_SAVING = """
import os, signal, sys, time
import numpy as np
from checkpoints import CheckpointStore

folder, fraction = sys.argv[1], float(sys.argv[2])
states = [{"x": np.random.default_rng(i).standard_normal(100_000)} for i in range(4)]
with CheckpointStore(folder, keep=2) as store:
    for update in range(3):
        start = time.perf_counter()
        store.save(update, states[update], {})
        store.wait()
        seconds = time.perf_counter() - start
    store.save(3, states[3], {})
    time.sleep(fraction * seconds)
    os.kill(os.getpid(), signal.SIGKILL)
"""


def test_sigkill_leaves_a_usable_checkpoint(tmp_path: Path) -> None:
    """Killed at several moments of a save, some while an older checkpoint is being deleted."""
    fractions = [0.0, 0.2, 0.4, 0.6, 0.8, 0.95]
    children = [
        subprocess.Popen([sys.executable, "-c", DIE_WHILE_SAVING, tmp_path / str(i), str(fraction)])
        for i, fraction in enumerate(fractions)
    ]
    for i, child in enumerate(children):
        assert child.wait() == -signal.SIGKILL
        folder = tmp_path / str(i)
        with CheckpointStore(folder, keep=2) as store:
            assert all(path.name.isdecimal() for path in folder.iterdir())
            update, state, _, damaged = store.restore(LIKE)
            assert update in (2, 3)
            assert damaged == []
            assert state["x"].tobytes() == state_of(update)["x"].tobytes()
            store.save(4, state_of(4), {})
            assert store.restore(LIKE).update == 4


FAIL_ONCE = """
import resource, sys
import numpy as np
from checkpoints import CheckpointStore
from learned_opt._src.errors import LearnedOptError

folder, limit = sys.argv[1], int(sys.argv[2])
small, big = ({str(i): np.random.default_rng(i).standard_normal(n) for i in range(20)}
              for n in (100, 100_000))
with CheckpointStore(folder) as store:
    store.save(1, small, {})
    store.wait()
    if limit:
        resource.setrlimit(resource.RLIMIT_FSIZE, (limit, resource.RLIM_INFINITY))
    store.save(2, big, {})
    try:
        store.save(3, small, {})
    except LearnedOptError as error:
        print(error)
    store.save(4, small, {})
with CheckpointStore(folder) as store:
    print(store.updates(), [store.restore(small).update])
"""


def fail_once(folder: Path, limit: int = 0) -> tuple[str, str]:
    command = [sys.executable, "-W", "error", "-c", FAIL_ONCE, str(folder), str(limit)]
    done = subprocess.run(command, check=True, capture_output=True, text=True)
    assert done.stderr == ""  # no log lines, no tracebacks of threads
    message, outcome = done.stdout.splitlines()
    assert outcome == "[1, 4] [4]"
    return message, str(folder)


def test_a_failed_write_is_one_sentence_and_is_over(tmp_path: Path) -> None:
    message, folder = fail_once(tmp_path, limit=1_000_000)
    assert f"update 2 could not be saved in {folder}: file too large" in message


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A disk of 4 MB; only a superuser can make one."""
    mount = ["mount", "-t", "tmpfs", "-o", "size=4m", "tmpfs", str(tmp_path)]
    try:
        mounted = subprocess.run(mount, capture_output=True).returncode == 0
    except FileNotFoundError:
        mounted = False
    if not mounted:
        pytest.skip("a small disk cannot be mounted here")
    yield tmp_path
    subprocess.run(["umount", str(tmp_path)], check=True)


def test_full_disk(small_disk: Path) -> None:
    message, folder = fail_once(small_disk)
    assert f"update 2 could not be saved in {folder}: no space left on device" in message


def assert_only_reading_works(folder: Path, words: str) -> None:
    with CheckpointStore(folder) as store:
        store.save(2, state_of(2), {})
        with pytest.raises(LearnedOptError, match=words) as caught:
            store.wait()
        assert not isinstance(caught.value, UserError)
        assert "\n" not in str(caught.value)
        assert store.restore(LIKE).update == 1
        assert store.updates() == [1]


def test_read_only_disk(small_disk: Path) -> None:
    with CheckpointStore(small_disk) as store:
        store.save(1, state_of(1), {})
    subprocess.run(["mount", "-o", "remount,ro", str(small_disk)], check=True)
    assert_only_reading_works(small_disk, "read-only file system")


@pytest.mark.skipif(os.geteuid() == 0, reason="a superuser may write to any folder")
def test_read_only_folder(tmp_path: Path) -> None:
    with CheckpointStore(tmp_path) as store:
        store.save(1, state_of(1), {})
    tmp_path.chmod(0o500)
    try:
        assert_only_reading_works(tmp_path, "permission denied")
    finally:
        tmp_path.chmod(0o700)


def test_a_file_where_the_folder_should_be(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with CheckpointStore(tmp_path / "file" / "checkpoints") as store:
        store.save(1, LIKE, {})
        with pytest.raises(LearnedOptError, match="not a directory"):
            store.wait()


def failing_once(store: CheckpointStore, monkeypatch: pytest.MonkeyPatch) -> None:
    """Make the next save fail halfway through writing."""
    write = store._files.write

    def fail(folder: Path, *_: Any) -> None:
        monkeypatch.setattr(store._files, "write", write)
        folder.with_name(f"{folder.name}.orbax-checkpoint-tmp").mkdir()
        raise OSError(errno.EIO, os.strerror(errno.EIO))

    monkeypatch.setattr(store._files, "write", fail)


def test_a_failure_is_raised_by_the_next_call(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with CheckpointStore(tmp_path) as store:
        failing_once(store, monkeypatch)
        store.save(1, LIKE, {})
        with pytest.raises(LearnedOptError, match="update 1 .* input/output error"):
            store.save(2, LIKE, {})
        assert list(tmp_path.iterdir()) == []  # no partial files remain to fill the disk
        store.save(3, LIKE, {})
        store.wait()
        assert store.updates() == [3]


def test_a_failed_replacement_can_be_undone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with CheckpointStore(tmp_path) as store:
        store.save(1, state_of(1), {})
        store.wait()
        failing_once(store, monkeypatch)
        store.save(1, state_of(2), {})
        with pytest.raises(LearnedOptError):
            store.wait()
        store.save(1, state_of(1), {})
        assert store.restore(LIKE).state["x"].tobytes() == state_of(1)["x"].tobytes()


def test_leaving_the_store_raises_a_failure(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(LearnedOptError, match="update 1"), CheckpointStore(tmp_path) as store:
        failing_once(store, monkeypatch)
        store.save(1, LIKE, {})


def test_leaving_the_store_does_not_hide_another_error(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with pytest.raises(ZeroDivisionError), CheckpointStore(tmp_path) as store:
        failing_once(store, monkeypatch)
        store.save(1, LIKE, {})
        raise ZeroDivisionError


def test_close_twice(tmp_path: Path) -> None:
    store = CheckpointStore(tmp_path)
    store.save(1, LIKE, {})
    store.close()
    store.close()
    assert store.updates() == [1]


@pytest.mark.parametrize("gone", [BrokenPipeError, ConnectionResetError])
def test_the_writer_of_a_process_that_has_died_ends_in_silence(gone: type[Exception]) -> None:
    parent = mock.Mock()
    parent.recv.return_value = (Path("checkpoint"), {}, {})
    parent.send.side_effect = gone
    with mock.patch.object(orbax_files, "_write") as write, mock.patch("signal.signal"):
        orbax_files._write_for(parent)
    write.assert_called_once()
