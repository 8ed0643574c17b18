"""Every test of this folder runs in an empty folder."""

from __future__ import annotations

import socket
from collections.abc import Iterator
from pathlib import Path

import pytest


@pytest.fixture(autouse=True)
def empty_working_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "work").mkdir()
    monkeypatch.chdir(tmp_path / "work")


@pytest.fixture
def closed_port() -> Iterator[int]:
    with socket.socket() as bound:  # bound but not listening, so connections are refused
        bound.bind(("127.0.0.1", 0))
        yield bound.getsockname()[1]
