"""The cache of compiled programs: what damage to it costs."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path
from unittest import mock

import pytest

from meta_train.devices import program_cache
from tests.meta_train.command import ROOT

SCRIPT = """
import jax
from meta_train.devices.program_cache import keep_programs
keep_programs()
keep_programs()

def first(x):
    return x + 1

def second(x):
    return x - 1

print(jax.jit(first)(1.0) + jax.jit(second)(1.0))
"""


def compiled(folder: Path) -> str:
    """The standard error of a process that runs two small programs."""
    kept = {"JAX_COMPILATION_CACHE_DIR": str(folder), "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "0"}
    ended = subprocess.run(
        [sys.executable, "-c", SCRIPT],
        env={**os.environ, **kept, "PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
        timeout=120,
        check=True,
    )
    assert ended.stdout == "2.0\n"
    return ended.stderr


def test_a_damaged_entry_is_replaced_and_said_once(tmp_path: Path) -> None:
    assert compiled(tmp_path) == ""
    entries = [path for path in tmp_path.iterdir() if path.name.startswith(("jit_first-", "jit_second-"))]
    sound = {path: path.read_bytes() for path in entries if path.name.endswith("-cache")}
    assert len(sound) == 2
    for path in sound:
        path.write_bytes(b"damaged")
    said = compiled(tmp_path)
    assert said.count("\n") == 1 and f"{tmp_path}: damaged entries are removed" in said
    assert all(path.read_bytes() != b"damaged" for path in sound)
    assert compiled(tmp_path) == ""


def test_an_entry_that_cannot_be_removed_is_said(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Such as a folder, or a file in a folder that is read-only."""
    (tmp_path / "jit_first-0-cache").mkdir()
    show = program_cache._Show(lambda *args: None)
    with mock.patch.object(program_cache, "_folder", lambda: str(tmp_path)):
        show("Error reading persistent compilation cache entry for 'jit_first': damaged")
    assert "damaged entries cannot be removed" in capsys.readouterr().err


@pytest.mark.skipif(os.geteuid() == 0, reason="root may write anywhere")
def test_a_folder_that_cannot_be_written_is_said_once(tmp_path: Path) -> None:
    tmp_path.chmod(0o500)
    said = compiled(tmp_path)
    assert said.count("\n") == 1 and "new programs cannot be kept there" in said
