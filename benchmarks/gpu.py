"""All GPU measurements of this package, in one command of about eight minutes.

    python benchmarks/gpu.py --out gpu-results
    python benchmarks/gpu.py --steps machine kernel --out gpu-results
    python benchmarks/gpu.py --miniature --out gpu-results     # each step on a CPU, in under two minutes

Each step is a process with a time limit. It prints its results line by line, and each line is appended to
``gpu-results/gpu.jsonl`` at once, so an interruption loses only the step that was running. All other output
of the steps goes to ``gpu-results/log.txt``.

A machine without a network needs the repository and a folder that this command creates beforehand:

    python benchmarks/gpu.py --pack gpu-pack
    pip install --no-index --no-deps --target gpu-site gpu-pack/*.whl
    PYTHONPATH=.:gpu-site TFDS_DATA_DIR=gpu-pack python benchmarks/gpu.py --out gpu-results
"""

from __future__ import annotations

import argparse
import contextlib
import importlib
import json
import os
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path
from typing import Any, NamedTuple

ROOT = Path(__file__).parents[1]
# Time between asking a step to stop, which lets a run save, and killing it.
GRACE_SECONDS = 15


class Step(NamedTuple):
    """One step, `benchmarks/gpu_steps/<name>.py`."""

    name: str
    seconds: int  # time limit
    beside: bool = False  # runs at the same time as the previous step; neither of the two is a timing


# In order of importance.
STEPS = (
    Step("machine", 35),
    Step("kernel", 60),
    Step("updates", 100),
    Step("throughput", 130),
    Step("bits", 140),
    Step("runs", 180, beside=True),
    Step("resumed", 120),
)


def main() -> int:
    """Run the steps, or one of them as a child process, or pack what they need."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--out", type=Path, default=Path("gpu-results"), help="folder for the results")
    parser.add_argument("--steps", nargs="+", choices=[s.name for s in STEPS], help="only these steps")
    parser.add_argument("--seconds", type=int, default=480, help="time limit for all steps together")
    parser.add_argument("--miniature", action="store_true", help="run every step on a small scale on a CPU")
    parser.add_argument("--resume", type=Path, help="folder of a run that the last step continues")
    parser.add_argument("--pack", type=Path, help="only create this folder of packages and data")
    parser.add_argument("--child", help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.pack:
        from gpu_steps.pack import pack

        pack(arguments.pack)
        return 0
    arguments.out.mkdir(parents=True, exist_ok=True)
    if arguments.child:
        _child(arguments.child, arguments)
        return 0
    return _parent(arguments)


def _child(name: str, arguments: argparse.Namespace) -> None:
    """Run one step; its results are JSON lines on standard output, all other output is on standard error."""
    results = os.fdopen(os.dup(1), "w", buffering=1)
    os.dup2(2, 1)

    def emit(**result: Any) -> None:
        print(json.dumps(result), file=results)

    importlib.import_module(f"gpu_steps.{name}").run(emit, arguments)


def _parent(arguments: argparse.Namespace) -> int:
    """Run the steps; the exit status is 0 if all of them succeeded."""
    deadline = time.monotonic() + arguments.seconds
    lock, failed, running = threading.Lock(), [], []
    with (arguments.out / "gpu.jsonl").open("a") as file, (arguments.out / "log.txt").open("a") as log:

        def record(step: str, **result: Any) -> None:
            with lock:
                file.write(json.dumps({"step": step, **result}) + "\n")
                file.flush()
                words = " ".join(f"{name}={_short(value)}" for name, value in result.items())
                print(f"{step}: {words}", flush=True)

        def go(step: Step) -> None:
            if not _run(step, arguments, deadline, record, log):
                failed.append(step.name)

        for step in STEPS:
            if arguments.steps and step.name not in arguments.steps:
                continue
            if not step.beside:
                for thread in running:
                    thread.join()
                running = []
            thread = threading.Thread(target=go, args=(step,))
            thread.start()
            running.append(thread)
        for thread in running:
            thread.join()
    print(f"failed: {', '.join(failed)}" if failed else "no step failed")
    return 1 if failed else 0


def _run(step: Step, arguments: argparse.Namespace, deadline: float, record: Any, log: Any) -> bool:
    """Run one step in its own process; whether it succeeded or was stopped at its limit."""
    limit = min(step.seconds, deadline - time.monotonic())
    if limit <= GRACE_SECONDS:
        record(step.name, ended="left out: no time")
        return False
    flags = ["--out", str(arguments.out), "--child", step.name]
    flags += ["--miniature"] if arguments.miniature else []
    flags += ["--resume", str(arguments.resume)] if arguments.resume else []
    platform = {"JAX_PLATFORMS": "cpu"} if arguments.miniature else {}
    began = time.monotonic()
    process = subprocess.Popen(
        [sys.executable, __file__, *flags],
        stdout=subprocess.PIPE,
        stderr=log,
        text=True,
        start_new_session=True,
        env=os.environ
        | {"PYTHONPATH": os.pathsep.join(filter(None, [str(ROOT), os.environ.get("PYTHONPATH")]))}
        | platform,
    )
    ends = [
        threading.Timer(seconds, _end, (process, number))
        for seconds, number in ((limit - GRACE_SECONDS, signal.SIGTERM), (limit, signal.SIGKILL))
    ]
    for timer in ends:
        timer.start()
    assert process.stdout is not None
    for line in process.stdout:
        record(step.name, **json.loads(line))
    status = process.wait()
    for timer in ends:
        timer.cancel()
    taken = time.monotonic() - began
    stopped = taken > limit - GRACE_SECONDS
    ended = "well" if status == 0 else "at its limit" if stopped else f"with {status}"
    record(step.name, ended=ended, seconds=round(taken, 1))
    return status == 0 or stopped


def _end(process: subprocess.Popen[str], number: int) -> None:
    """Send a signal to a step and all processes that it started."""
    with contextlib.suppress(ProcessLookupError):
        os.killpg(process.pid, number)


def _short(value: Any) -> str:
    """A value in short readable form."""
    if isinstance(value, float):
        return f"{value:.4g}"
    if isinstance(value, dict):
        return "{" + ", ".join(f"{k}: {_short(v)}" for k, v in value.items()) + "}"
    return str(value)


if __name__ == "__main__":
    sys.exit(main())
