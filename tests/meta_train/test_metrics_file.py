"""A damaged metrics file costs the lines that are damaged, and nothing else."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest

import learned_opt
from meta_train.run.folder import MetricsFile, read_metrics
from tests.meta_train.command import Run, meta_train
from tests.meta_train.failures.messages import PAGE


def line(number: int, **changed: object) -> bytes:
    record = {"update": number, "loss": 1 / number, "gradient_norm": 2.0, "steps": 32, "seconds": 0.1}
    return json.dumps(record | changed).encode() + b"\n"


LINES = [line(update) for update in range(1, 6)]
WHOLE = b"".join(LINES)


def zeros_over(line: bytes) -> bytes:
    return line[:20] + bytes(40) + line[60:]


DAMAGE: dict[str, tuple[bytes, list[int]]] = {
    "none": (WHOLE, [1, 2, 3, 4, 5]),
    "zeros in a line": (b"".join([LINES[0], zeros_over(LINES[1]), *LINES[2:]]), [1, 3, 4, 5]),
    "zeros over the end of a line": (
        WHOLE[: len(LINES[0]) - 5] + bytes(10) + WHOLE[len(LINES[0]) + 5 :],
        [3, 4, 5],
    ),
    "zeros at the end": (b"".join(LINES[:3]) + bytes(len(WHOLE) - len(b"".join(LINES[:3]))), [1, 2, 3]),
    "too short": (WHOLE[:-30], [1, 2, 3, 4]),
    "empty": (b"", []),
    "a line is missing": (b"".join([*LINES[:2], *LINES[3:]]), [1, 2, 4, 5]),
    "two processes wrote it": (b"".join([*LINES[:3], *LINES[1:]]), [1, 2, 3, 4, 5]),
    "something was inserted": (LINES[0] + b"a note\n\n\r\xff" + b"".join(LINES[1:]), [1, 3, 4, 5]),
    "not metrics": (b"".join([b"[]\n", line(1, steps="many"), line(2, loss=[]), *LINES[2:]]), [3, 4, 5]),
    "not finite": (b"".join([line(1, steps=float("inf")), line(2, update=True), *LINES[2:]]), [3, 4, 5]),
    "deep": (b"[" * 50_000 + b"\n" + LINES[0], [1]),
}


@pytest.mark.parametrize("kind", DAMAGE)
def test_intact_lines_are_kept(kind: str, tmp_path: Path) -> None:
    content, kept = DAMAGE[kind]
    path = tmp_path / "metrics.jsonl"
    path.write_bytes(content + line(6) + b'{"update": 7, "lo')  # of updates that will be made again
    with MetricsFile(path, 5) as file:
        assert file.lost == 5 - len(kept)
        file.write({"update": 6, "loss": None, "gradient_norm": None, "steps": 32})
        assert [record["update"] for record in read_metrics(path)] == [*kept, 6]
    assert path.read_bytes().count(b"\n") == len(kept) + 1
    assert [each.name for each in tmp_path.iterdir()] == ["metrics.jsonl"]


def test_a_file_without_damage_stays_as_it_is(tmp_path: Path) -> None:
    path = tmp_path / "metrics.jsonl"
    path.write_bytes(WHOLE + line(6))
    inode = path.stat().st_ino
    with MetricsFile(path, 5) as file:
        assert file.lost == 0
    assert (path.read_bytes(), path.stat().st_ino) == (WHOLE, inode)


@pytest.mark.slow
@pytest.mark.parametrize(("damaged", "lost"), [(80, 1), (10_000, 3)])
def test_a_run_with_a_damaged_log_ends(
    damaged: int, lost: int, tiny_run: Run, tmp_path: Path, no_comparing: None
) -> None:
    """The weights are the same; only the summary of the meta-training is of fewer updates."""
    folder = shutil.copytree(tiny_run.path, tmp_path / "run")
    shutil.rmtree(folder / "report")
    log = folder / "metrics.jsonl"
    log.write_bytes(bytes(damaged) + log.read_bytes()[damaged:])
    outcome = meta_train("--resume", folder)
    assert outcome.code == 0, outcome.err
    said = f"the lines of {lost} of the first 3 updates are damaged or missing; the run goes on"
    assert f"{log}: {said}" in outcome.err and said.partition("updates ")[2] in PAGE
    assert [record["update"] for record in read_metrics(log)] == [1, 2, 3][lost:]
    before, after = (learned_opt.read(path).metadata for path in (tiny_run.path, folder))
    assert after["digest"] == before["digest"]
    assert (folder / "report" / "meta_training.png").exists()
