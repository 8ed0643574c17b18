"""W&B: the content of an offline run, the meaning of the mode `auto`, and failures that do not stop a run."""

from __future__ import annotations

import asyncio
import json
import logging
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from meta_train.run import tracking
from meta_train.run.interrupt import Interrupted, StopRequest
from meta_train.run.tracking import Tracker, start_tracking, tracked
from tests.meta_train.command import TINY, at_update, meta_train
from tests.meta_train.wandb_backend import KEY, Backend, Run, serve
from tests.meta_train.wandb_records import read_records

CONFIG = {"task": "digits-mlp", "estimator": {"sigma": 0.03, "particles": 16}}
# The smallest PNG, one grey pixel.
PNG = bytes.fromhex(
    "89504e470d0a1a0a0000000d49484452000000010000000108000000003a7e9b55"
    "0000000a49444154789c6360000000020001e221bc330000000049454e44ae426082"
)


@pytest.fixture(autouse=True)
def no_account(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """A machine on which nobody uses W&B; W&B's service and settings are reset after a test."""
    for name in [name for name in os.environ if name.startswith("WANDB_")]:
        monkeypatch.delenv(name)
    for name in ("WANDB_DATA_DIR", "WANDB_CACHE_DIR", "WANDB_ERROR_REPORTING"):
        monkeypatch.setenv(name, "")  # so that monkeypatch undoes the tracker's changes
        monkeypatch.delenv(name)
    home = tmp_path / "home"
    home.mkdir()
    monkeypatch.setenv("HOME", str(home))
    monkeypatch.delenv("NETRC", raising=False)
    monkeypatch.chdir(tmp_path)
    yield
    if "wandb" in sys.modules:
        tracking._end_service()


def wandb_service() -> subprocess.Popen[bytes]:
    """The process of W&B."""
    import wandb

    return wandb.sdk.wandb_setup.singleton().ensure_service()._proc._process


def offline_files(run_dir: Path) -> list[Path]:
    return sorted(run_dir.glob("wandb/offline-run-*/*.wandb"))


def as_dict(items: Any) -> dict[str, Any]:
    """W&B's key-value pairs, with nested keys joined by dots."""
    return {".".join(item.nested_key) or item.key: json.loads(item.value_json or "null") for item in items}


def parse(file: Path) -> dict[str, Any]:
    """The content of the records of one offline run."""
    parsed: dict[str, Any] = {"history": {}, "summary": {}, "artifacts": {}}
    for record in read_records(file):
        match record.WhichOneof("record_type"):
            case "run":
                parsed["id"], parsed["config"] = (
                    record.run.run_id,
                    as_dict(record.run.config.update),
                )
            case "history":
                row = as_dict(record.history.item)
                parsed["history"][row["_step"]] = row
            case "summary":
                parsed["summary"] |= as_dict(record.summary.update)
            case "artifact":
                parsed["artifacts"][record.artifact.type] = record.artifact
            case "exit":
                parsed["exit"] = record.exit.exit_code
    return parsed


def test_whole_meta_training_is_recorded_offline(no_comparing: None):
    """`meta-train --wandb offline`: configuration, every update, comparison, artifact, exit code."""
    outcome = meta_train(TINY, "--updates 3 --checkpoint-every 2 --devices 2 --run-dir run --wandb offline")
    assert outcome.code == 0, outcome.err
    run = Path("run")
    (file,) = offline_files(run)
    parsed = parse(file)
    assert parsed["config"]["estimator.sigma"] == 0.03
    assert parsed["config"]["outer.learning-rate"] == 0.02
    updates = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    assert len(updates) == 3
    for update in updates:
        row = parsed["history"][update["update"]]
        for name in ("loss", "gradient_norm", "seconds", "steps", "skipped"):
            assert row[name] == update[name]
    last = {key.split(".")[0] for key in parsed["history"][max(parsed["history"])]}
    assert {"comparison", "training_curves", "learning_rates", "meta_training"} <= last
    optimizers = json.loads((run / "report" / "summary.json").read_text())["optimizers"]
    for ratio in ("ratio_to_best", "ratio_to_adam"):
        assert parsed["summary"][ratio] == optimizers["learned"][ratio]
    (entry,) = parsed["artifacts"]["optimizer"].manifest.contents
    assert entry.path == "optimizer.safetensors"
    assert entry.size == (run / "optimizer.safetensors").stat().st_size
    assert parsed["exit"] == 0


def test_offline_run_is_complete(tmp_path: Path):
    run_dir = Path("runs/x")
    run_dir.mkdir(parents=True)
    optimizer, figure = run_dir / "optimizer.safetensors", run_dir / "curves.png"
    optimizer.write_bytes(b"weights")
    figure.write_bytes(PNG)

    tracker = start_tracking("offline", run_dir, CONFIG)
    assert tracker.status.startswith("W&B: offline, runs/x/wandb/offline-run-")
    # Enough for the file to span several of its 32 KiB blocks.
    metrics = {step: {"loss": 2 / step, "gradient_norm": 3.0 * step} for step in range(1, 301)}
    for step, values in metrics.items():
        tracker.log(step, values)
    tracker.artifact(optimizer, {"task": "digits-mlp"})
    tracker.report(
        [{"optimizer": "adam", "learning_rate": 0.04}, {"optimizer": "learned"}],
        {"curves": figure},
    )
    tracker.summary({"ratio_to_adam": 0.8})
    tracker.finish(0)

    (file,) = offline_files(run_dir)
    run = parse(file)
    assert file.stat().st_size > 2 * 32 * 1024
    assert {name: run["config"][name] for name in CONFIG} == CONFIG
    logged = {step: run["history"][step] for step in metrics}
    assert {s: {k: row[k] for k in ("loss", "gradient_norm")} for s, row in logged.items()} == metrics
    assert run["summary"]["ratio_to_adam"] == 0.8
    assert run["exit"] == 0

    artifact = run["artifacts"]["optimizer"]
    (entry,) = artifact.manifest.contents
    assert json.loads(artifact.metadata) == {"task": "digits-mlp"}
    assert (entry.path, Path(entry.local_path)) == (optimizer.name, optimizer.resolve())

    folder = file.parent / "files"
    report = run["history"][301]
    table = json.loads((folder / report["comparison.path"]).read_text())
    assert table["columns"] == ["optimizer", "learning_rate"]
    assert table["data"] == [["adam", 0.04], ["learned", None]]
    assert (folder / report["curves.path"]).read_bytes() == PNG
    # Everything that W&B would upload is in the run folder, and nothing is anywhere else.
    (staged,) = run["artifacts"]["run_table"].manifest.contents
    assert Path(staged.local_path).is_relative_to(run_dir.resolve())
    assert list((tmp_path / "home").iterdir()) == []


def test_a_resumed_run_keeps_its_id_and_its_exit_code(tmp_path: Path):
    for updates, exit_code in ((range(1, 4), 143), (range(4, 7), 0)):
        tracker = start_tracking("offline", tmp_path, CONFIG)
        for update in updates:
            tracker.log(update, {"loss": 1.0})
        tracker.finish(exit_code)
    runs = sorted(map(parse, offline_files(tmp_path)), key=lambda run: min(run["history"]))
    assert [list(run["history"]) for run in runs] == [[1, 2, 3], [4, 5, 6]]
    assert [run["exit"] for run in runs] == [143, 0]
    stored = json.loads((tmp_path / "wandb.json").read_text())
    assert [run["id"] for run in runs] == [stored["id"]] * 2


@pytest.fixture
def backend(monkeypatch: pytest.MonkeyPatch) -> Iterator[Backend]:
    """A W&B server to which this machine is logged in."""
    with serve() as backend:
        monkeypatch.setenv("WANDB_BASE_URL", backend.url)
        monkeypatch.setenv("WANDB_API_KEY", KEY)
        yield backend


def test_the_parts_of_an_interrupted_offline_run_sync_as_one(tmp_path: Path, backend: Backend):
    """Killed after update 5 and then after 4, each time with a checkpoint of update 3."""
    for updates, last in ((range(1, 6), 0), (range(4, 5), 5), (range(4, 11), 4)):
        tracker = start_tracking("offline", tmp_path, CONFIG, last_update=last)
        for update in updates:
            tracker.log(update, {"loss": 1 / update})
        tracker.finish(0)
    parts = offline_files(tmp_path)
    assert len(parts) == 3
    parts[0].write_bytes(parts[0].read_bytes()[:-1])  # as W&B leaves the file if it is killed
    for part in parts:
        subprocess.run([sys.executable, "-m", "wandb", "sync", part.parent], check=True, timeout=60)
    (run,) = backend.runs.values()
    assert [(row["_step"], row["loss"]) for row in run.history] == [(n, 1 / n) for n in range(1, 11)]


def interrupted(number: int, backend: Backend, run_dir: Path) -> list[int]:
    """The exit codes that the server got, for a run that this signal stops."""
    with (
        pytest.raises(Interrupted),
        tracked("online", run_dir, CONFIG, stop=lambda: None, last_update=0) as tracker,
    ):
        assert tracker.status.startswith(f"W&B: {backend.url}")
        tracker.log(1, {"loss": 1.0})
        raise Interrupted("stopped", number)
    return next(iter(backend.runs.values())).exit_codes


def test_a_preempted_run_is_handed_out_again(tmp_path: Path, backend: Backend):
    assert interrupted(signal.SIGTERM, backend, tmp_path) == [143]
    ((run_id, run),) = backend.runs.items()
    (command,) = backend.commands
    assert (command["type"], command["run_id"]) == ("resume", run_id)
    tracker = start_tracking("online", tmp_path, CONFIG)
    for update in (1, 2):  # the first is repeated
        tracker.log(update, {"loss": 0.5})
    tracker.finish(0)
    assert [(row["_step"], row["loss"]) for row in run.history] == [(1, 1.0), (2, 0.5)]
    assert run.exit_codes == [143, 0]


def test_a_sigterm_to_all_processes_ends_that_of_w_and_b_too(tmp_path: Path, backend: Backend):
    with (
        pytest.raises(Interrupted),
        tracked("online", tmp_path, CONFIG, stop=lambda: None, last_update=0) as tracker,
    ):
        tracker.log(1, {"loss": 1.0})
        service = wandb_service()
        service.terminate()
        service.wait()
        raise Interrupted("stopped", signal.SIGTERM)
    ((run_id, run),) = backend.runs.items()
    assert run.exit_codes == [143]
    (command,) = backend.commands
    assert (command["type"], command["run_id"]) == ("resume", run_id)
    assert command["args"].keys() == {"_wandb", *CONFIG}


def test_a_resumed_run_sends_the_updates_that_w_and_b_misses(no_comparing: None, backend: Backend):
    flags = "--updates 3 --checkpoint-every 2 --devices 2 --run-dir run --wandb offline"
    with at_update(2, lambda: signal.raise_signal(signal.SIGTERM)):
        assert meta_train(TINY, flags).code == 143
    assert meta_train("--resume run --wandb online").code == 0
    (run,) = backend.runs.values()
    assert run.steps == [1, 2, 3, 4]  # the last is the comparison


def test_a_run_that_w_and_b_or_ctrl_c_stops_is_not_handed_out_again(tmp_path, monkeypatch, backend: Backend):
    monkeypatch.setenv("WANDB_RUN_ID", "r")
    assert interrupted(signal.SIGINT, backend, tmp_path) == [130]
    backend.runs["r"].stopped = True
    assert interrupted(signal.SIGTERM, backend, tmp_path) == [130, 143]
    assert backend.commands == []


def test_w_and_b_asks_the_run_to_stop(tmp_path, monkeypatch, backend: Backend):
    from wandb.sdk.lib import run_stopping

    monkeypatch.setattr(run_stopping, "_SLEEP", lambda seconds: asyncio.sleep(seconds / 100))
    monkeypatch.setenv("WANDB_RUN_ID", "r")
    backend.runs["r"] = Run(stopped=True)
    with StopRequest() as stop:
        tracker = start_tracking("online", tmp_path, CONFIG, stop=stop.request)
        start = time.monotonic()
        while not stop.requested():
            assert time.monotonic() < start + 20
            time.sleep(0.05)
    tracker.finish(143)
    with pytest.raises(Interrupted) as stopped:
        stop.check("stopped")
    assert stopped.value.exit_code == 143


def test_a_damaged_id_file_starts_a_new_run(tmp_path: Path):
    (tmp_path / "wandb.json").write_text('{"id": "abc')
    start_tracking("offline", tmp_path, CONFIG).finish(0)
    (file,) = offline_files(tmp_path)
    assert json.loads((tmp_path / "wandb.json").read_text())["id"] == parse(file)["id"]


def test_sweep_run_takes_the_agents_id_and_parameters(tmp_path, monkeypatch):
    parameters = tmp_path / "config-agents.yaml"
    parameters.write_text("wandb_version: 1\nestimator.sigma:\n  value: 0.01\n")
    monkeypatch.setenv("WANDB_SWEEP_ID", "s1")
    monkeypatch.setenv("WANDB_RUN_ID", "agents")
    monkeypatch.setenv("WANDB_SWEEP_PARAM_PATH", str(parameters))
    monkeypatch.setenv("WANDB_MODE", "offline")
    start_tracking("auto", tmp_path, CONFIG).finish(0)
    run = parse(offline_files(tmp_path)[0])
    assert run["id"] == "agents" == json.loads((tmp_path / "wandb.json").read_text())["id"]
    assert run["config"]["estimator.sigma"] == 0.01
    assert run["config"]["estimator"] == CONFIG["estimator"]


NETRC = "machine api.wandb.ai login user password " + KEY


@pytest.mark.parametrize(
    ("environment", "netrc", "resolved"),
    [
        ({}, None, "disabled"),
        ({"WANDB_API_KEY": KEY}, None, "online"),
        ({}, NETRC, "online"),
        ({}, NETRC.replace("wandb.ai", "example.org"), "disabled"),
        ({"WANDB_SWEEP_ID": "s1"}, None, "online"),
        ({"WANDB_MODE": "online"}, None, "online"),
        ({"WANDB_MODE": "offline"}, None, "offline"),
        ({"WANDB_MODE": "dryrun"}, None, "offline"),
        ({"WANDB_MODE": "offline", "WANDB_API_KEY": KEY}, None, "offline"),
        ({"WANDB_MODE": "disabled", "WANDB_SWEEP_ID": "s1"}, NETRC, "disabled"),
        ({"WANDB_MODE": ""}, None, "disabled"),
    ],
)
def test_auto(environment, netrc, resolved, tmp_path, monkeypatch):
    monkeypatch.setenv("WANDB_BASE_URL", "https://api.wandb.ai")
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    if netrc:
        (tmp_path / "home" / ".netrc").write_text(netrc)
    assert tracking._resolve("auto", tmp_path) == resolved


def test_an_explicit_mode_wins_over_the_environment(tmp_path, monkeypatch):
    monkeypatch.setenv("WANDB_MODE", "online")
    assert start_tracking("disabled", tmp_path, {}).status == "W&B: disabled"
    monkeypatch.setenv("WANDB_MODE", "disabled")
    tracker = start_tracking("offline", tmp_path, {})
    tracker.log(1, {"loss": 1.0})
    tracker.finish(0)
    assert parse(offline_files(tmp_path)[0])["history"][1]["loss"] == 1.0


@pytest.fixture
def closed_port() -> Iterator[int]:
    with socket.socket() as bound:  # bound but not listening, so connections are refused
        bound.bind(("127.0.0.1", 0))
        yield bound.getsockname()[1]


def test_unreachable_server_means_offline(tmp_path, monkeypatch, closed_port):
    monkeypatch.setenv("WANDB_API_KEY", KEY)
    monkeypatch.setenv("WANDB_BASE_URL", f"http://127.0.0.1:{closed_port}")
    (tmp_path / "wandb.json").write_text('{"id": "before"}')
    monkeypatch.setattr(tracking, "ONLINE_TIMEOUT", 1.0)
    tracker = start_tracking("auto", tmp_path, CONFIG)
    assert tracker.status.startswith("W&B: not reachable (")
    assert ", continuing offline, wandb/offline-run-" in tracker.status
    tracker.log(1, {"loss": 1.0})
    tracker.finish(0)
    run = parse(offline_files(tmp_path)[0])
    assert (run["id"], run["history"][1]["loss"], run["exit"]) == ("before", 1.0, 0)


def test_online_without_a_key_never_asks(tmp_path, monkeypatch):
    monkeypatch.setattr("builtins.input", lambda *_: pytest.fail("asked for a key"))
    tracker = start_tracking("online", tmp_path, CONFIG)
    assert "not logged in" in tracker.status and "continuing offline" in tracker.status
    tracker.finish(0)


def test_a_start_that_fails_altogether_stops_nothing(tmp_path, monkeypatch, caplog):
    monkeypatch.setenv("WANDB_MODE", "sideways")
    tracker = start_tracking("auto", tmp_path, CONFIG)
    assert tracker.status.startswith("W&B: could not start (")
    assert tracker.status.endswith("continuing without it")
    use_everything(tracker)
    assert caplog.records == []


def use_everything(tracker: Tracker) -> None:
    for update in range(1, 4):
        tracker.log(update, {"loss": 1.0})
    tracker.report([{"optimizer": "adam"}], {"curves": Path("missing.png")})
    tracker.artifact(Path("missing.safetensors"), {})
    tracker.summary({"ratio_to_adam": 0.8})
    tracker.finish(0)


def test_a_service_that_dies_is_reported_once(tmp_path, caplog):
    tracker = start_tracking("offline", tmp_path, CONFIG)
    tracker.log(1, {"loss": 1.0})
    service = wandb_service()
    service.kill()
    service.wait()
    with caplog.at_level(logging.WARNING, logger="meta_train"):
        use_everything(tracker)
    (record,) = [r for r in caplog.records if r.name.startswith("meta_train")]
    assert record.getMessage().startswith("W&B: failed (")
    assert "`wandb sync wandb/offline-run-" in record.getMessage()


def test_one_bad_call_does_not_end_the_mirror(tmp_path, caplog):
    tracker = start_tracking("offline", tmp_path, CONFIG)
    use_everything(tracker)  # its figure and its optimizer file are missing
    assert sum(r.name.startswith("meta_train") for r in caplog.records) == 1
    run = parse(offline_files(tmp_path)[0])
    assert (list(run["history"]), run["summary"]["ratio_to_adam"]) == ([1, 2, 3], 0.8)


@pytest.mark.parametrize("mode", ["disabled", "auto"])
def test_disabled_imports_no_wandb(mode, tmp_path):
    script = f"""
import sys
from pathlib import Path
from meta_train.run.tracking import start_tracking
tracker = start_tracking({mode!r}, Path({str(tmp_path)!r}), {{}})
tracker.log(1, {{"loss": 1.0}})
tracker.finish(0)
print(tracker.status, "wandb" in sys.modules)
"""
    assert run_script(script).stdout == "W&B: disabled False\n"


def test_it_is_quiet_and_leaves_signals_alone(tmp_path):
    """Ctrl-C, which reaches all processes of the terminal, neither ends W&B's nor changes our handlers."""
    script = f"""
import os, signal, time
from pathlib import Path
from meta_train.run.tracking import start_tracking
signals = signal.SIGINT, signal.SIGTERM
caught = []
for number in signals:
    signal.signal(number, lambda number, frame: caught.append(number))
before = [signal.getsignal(number) for number in signals]
tracker = start_tracking("offline", Path({str(tmp_path)!r}), {{}})
tracker.log(1, {{"loss": 1.0}})
assert [signal.getsignal(number) for number in signals] == before
os.killpg(os.getpid(), signal.SIGINT)
time.sleep(0.2)
assert caught == [signal.SIGINT]
tracker.log(2, {{"loss": 1.0}})
tracker.finish(130)
raise SystemExit(130)
"""
    result = run_script(script)
    assert (result.returncode, result.stdout, result.stderr) == (130, "", "")
    run = parse(offline_files(tmp_path)[0])
    assert (list(run["history"]), run["exit"]) == ([1, 2], 130)


def run_script(script: str) -> subprocess.CompletedProcess[str]:
    root = Path(tracking.__file__).parents[1]
    return subprocess.run(
        [sys.executable, "-c", script],
        env={**os.environ, "PYTHONPATH": str(root)},
        capture_output=True,
        text=True,
        timeout=60,
        start_new_session=True,
    )
