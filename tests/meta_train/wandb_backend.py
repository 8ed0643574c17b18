"""A W&B server on loopback: as much of one as runs, `wandb sweep`, `wandb agent` and `wandb sync` ask for."""

from __future__ import annotations

import contextlib
import gzip
import json
import re
import threading
from collections.abc import Iterator
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

import yaml

KEY = "0123456789" * 4  # the form of an API key
OWNER = {"id": "p", "name": "learned-opt", "entity": {"id": "e", "name": "me"}}
SWEEP = "me/learned-opt/s1"  # the path of the newest sweep


@dataclass
class Run:
    """What the server knows of a run.

    Attributes:
        config: as W&B keeps it, ``{"name": {"value": ...}}``.
        streams: the lines of each streamed file, such as the history.
        artifacts: types of the artifacts.
        exit_codes: one for each time that the run ended.
        preempting: whether it said so since it was last handed out.
        stopped: whether it was asked to stop.
    """

    config: dict[str, Any] = field(default_factory=dict)
    streams: dict[str, list[str]] = field(default_factory=dict)
    artifacts: list[str] = field(default_factory=list)
    exit_codes: list[int] = field(default_factory=list)
    preempting: bool = False
    stopped: bool = False

    @property
    def values(self) -> dict[str, Any]:
        """The configuration, as name to value."""
        return {name: entry["value"] for name, entry in self.config.items()}

    @property
    def history(self) -> list[dict[str, Any]]:
        return [json.loads(line) for line in self.streams.get("wandb-history.jsonl", [])]

    @property
    def steps(self) -> list[int]:
        return [row["_step"] for row in self.history]

    @property
    def summary(self) -> dict[str, Any]:
        return json.loads((self.streams.get("wandb-summary.json") or ["{}"])[-1])


class Backend:
    """The state of the server, and its answers.

    A run that marks itself preempting and ends with an exit code above 0 is handed out again, with the same
    id and its whole configuration (https://docs.wandb.ai/models/runs/resuming, wandb/wandb#4237).

    Attributes:
        runs: by id.
        sweeps: the configurations of the created sweeps.
        commands: what the next heartbeats of an agent are answered with, one each.
        uploads: the uploaded files, by path.
        url: where it is reached.
    """

    def __init__(self) -> None:
        self.runs: dict[str, Run] = {}
        self.sweeps: list[dict[str, Any]] = []
        self.commands: list[dict[str, Any]] = []
        self.uploads: dict[str, bytes] = {}
        self.url = ""

    def hand_out(self, run_id: str, values: dict[str, Any]) -> None:
        """Let the next heartbeat start a run with these parameters."""
        self.runs[run_id] = Run({name: {"value": value} for name, value in values.items()})
        self._command("run", run_id)

    def stop(self, run_id: str) -> None:
        """What the button "stop run" does."""
        self.runs[run_id].stopped = True
        self._command("stop", run_id)

    def _command(self, kind: str, run_id: str) -> None:
        args = self.runs[run_id].config
        self.commands.append({"type": kind, "run_id": run_id, "program": "meta-train", "args": args})

    def post(self, path: str, body: bytes) -> dict[str, Any]:
        """The answer to a request with this body."""
        if streamed := re.search(r"/(\w+)/file_stream$", path):
            return self._stream(streamed[1], json.loads(body))
        if path != "/graphql":
            return {}  # telemetry
        request = json.loads(body)
        operation = re.search(r"(?:query|mutation)\s+(\w+)", request["query"])[1]
        data = self._data(operation, request.get("variables") or {})
        return {"data": data} if data else {"errors": [{"message": f"unknown operation {operation}"}]}

    def _stream(self, run_id: str, request: dict[str, Any]) -> dict[str, Any]:
        """Take what a run streams, and tell it whether it was asked to stop."""
        run = self.runs[run_id]
        for name, chunk in request.get("files", {}).items():
            run.streams.setdefault(name, [])[chunk["offset"] :] = chunk["content"]
        run.preempting |= request.get("preempting", False)
        if request.get("complete"):
            run.exit_codes.append(request["exitcode"])
            if run.preempting and request["exitcode"]:
                run.preempting = False
                self._command("resume", run_id)
        return {"stopped": run.stopped}

    def _data(self, operation: str, given: dict[str, Any]) -> dict[str, Any] | None:
        """The answer to a GraphQL operation with these variables; None if it is not known here."""
        run_id = given.get("run") or given.get("name") or ""
        run = self.runs.get(run_id)
        match operation:
            case "ServerFeaturesQuery":
                return {"serverInfo": {"features": []}}
            case "Viewer":
                return {"viewer": {"id": "u", "entity": "me", "username": "me", "flags": "{}"}}
            case "UpsertSweep":
                self.sweeps.append(yaml.safe_load(given["config"]))
                sweep = {"name": "s1", "project": OWNER}
                return {"upsertSweep": {"sweep": sweep, "configValidationWarnings": []}}
            case "SweepWithRuns":
                config = yaml.safe_dump(self.sweeps[-1])
                return {"project": {"sweep": {"id": "s", "config": config, "runs": {"edges": []}}}}
            case "CreateAgent":
                return {"createAgent": {"agent": {"id": "a"}}}
            case "Heartbeat":
                commands, self.commands = self.commands[:1], self.commands[1:]
                return {"agentHeartbeat": {"agent": {"id": "a"}, "commands": json.dumps(commands)}}
            case "RunStoppedStatus":
                return {"project": {"run": run and {"stopped": run.stopped}}}
            case "RunResumeStatus":
                return {"model": {**OWNER, "bucket": run and self._bucket(run_id, run)}}
            case "UpsertBucket":
                run = self.runs.setdefault(run_id, Run())
                if given.get("config"):
                    run.config = json.loads(given["config"])
                return {"upsertBucket": {"bucket": self._bucket(run_id, run), "inserted": True}}
            case "CreateRunFiles":
                files = [{"name": name, "uploadUrl": self._upload(run_id, name)} for name in given["files"]]
                return {"createRunFiles": {"runID": run_id, "uploadHeaders": [], "files": files}}
            case "ArtifactType":
                return {"project": {"artifact": None}}
            case "CreateArtifact":
                self.runs[given["input"]["runName"]].artifacts.append(given["input"]["artifactTypeName"])
                artifact = {"id": "f", "state": "PENDING", "artifactSequence": {"latestArtifact": None}}
                return {"createArtifact": {"artifact": artifact}}
            case "CreateArtifactManifest":
                file = {"id": "i", "uploadUrl": self._upload("manifest"), "uploadHeaders": []}
                return {"createArtifactManifest": {"artifactManifest": {"id": "m", "file": file}}}
            case "CreateArtifactFiles":
                nodes = [
                    {
                        "storagePath": file["name"],
                        "uploadUrl": self._upload("artifact", file["name"]),
                        "artifact": {"id": "f"},
                    }
                    for file in given["input"]["artifactFiles"]
                ]
                return {"createArtifactFiles": {"files": {"edges": [{"node": node} for node in nodes]}}}
            case "CommitArtifact":
                return {"commitArtifact": {"artifact": {"id": "f", "digest": "d"}}}
            case _:
                return None

    def _bucket(self, run_id: str, run: Run) -> dict[str, Any]:
        """A run as GraphQL returns it."""
        return {
            "id": f"run-{run_id}",
            "name": run_id,
            "project": OWNER,
            "config": json.dumps(run.config),
            "wandbConfig": json.dumps(run.values.get("_wandb", {})),
            "summaryMetrics": json.dumps(run.summary),
            "historyTail": json.dumps(run.streams.get("wandb-history.jsonl", [])[-1:]),
            "eventsTail": "[]",
            "historyLineCount": len(run.history),
            "eventsLineCount": 0,
            "logLineCount": 0,
        }

    def _upload(self, *path: str) -> str:
        return "/".join((self.url, "upload", *path))


@contextlib.contextmanager
def serve() -> Iterator[Backend]:
    """A backend that answers at its ``url``."""
    backend, lock = Backend(), threading.Lock()

    class Handler(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            body = self._body()
            with lock:
                answer = backend.post(self.path, body)
            self._send(answer)

        def do_PUT(self) -> None:
            backend.uploads[self.path.removeprefix("/upload/")] = self._body()
            self._send({})

        def _body(self) -> bytes:
            body = self.rfile.read(int(self.headers["Content-Length"]))
            return gzip.decompress(body) if self.headers.get("Content-Encoding") == "gzip" else body

        def _send(self, answer: dict[str, Any]) -> None:
            body = json.dumps(answer).encode()
            self.send_response(200)
            self.send_header("Content-Type", "application/json")
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

        def log_message(self, *_: Any) -> None:
            pass

    with ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        backend.url = f"http://127.0.0.1:{server.server_port}"
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.05})
        thread.start()
        yield backend
        server.shutdown()
        thread.join()
