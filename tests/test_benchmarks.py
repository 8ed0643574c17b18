"""The benchmarks run in miniature; their results are not checked."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from tests.marks import slow

FOLDER = Path(__file__).parents[1] / "benchmarks"

QUICK = {"optimizers": "--parameters 1000 --optimizers sgdm"}
SLOW = {
    "compiling": "--layers 1 --width 8 --optimizers mlp",
    "blocks": "--optimizers celo2-style --parameters 2000 --sizes 512 --rounds 1",
    "gpu": "--miniature",
    "estimators": "--estimators pes --seeds 0 --steps 640 --evaluation-seeds 1",
    "settings": "--estimators pes --particles 2 --updates 2 --sigmas 0.1 --learning-rates 0.02 "
    "--validation 0.5 --seeds 2 --evaluation-seeds 1",
    "noise": "--estimators pes --sigmas 0.1 --truncations 5 --horizon 10 --units 3 --episodes 1",
    "kills": "--kinds pes --kills 2",
    "startup": "--tasks digits-mlp --rounds 1",
    "scaling": "--rounds 1",
    "throughput": "--tasks digits-mlp --rounds 1",
    "weak_scaling": "--devices 2 1 --particles 2 --rounds 1 --updates 8",
}
# This needs minutes, gigabytes and real data, so it is only run by hand.
BY_HAND = {"estimates"}
NO_SCRIPT = {"common", "peer", "variants"}


def test_every_benchmark_is_known():
    assert {p.stem for p in FOLDER.glob("*.py")} == {*QUICK, *SLOW, *BY_HAND, *NO_SCRIPT}


@pytest.mark.parametrize(
    "name, arguments",
    [*QUICK.items(), *(slow(*item) for item in SLOW.items())],
)
def test_runs(name, arguments, tmp_path):
    command = [sys.executable, FOLDER / f"{name}.py", *arguments.split()]
    environment = os.environ | {"PYTHONPATH": str(FOLDER.parent)}
    finished = subprocess.run(command, capture_output=True, text=True, env=environment, cwd=tmp_path)
    assert finished.returncode == 0, finished.stderr
    assert finished.stdout
