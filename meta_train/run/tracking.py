"""Mirrors a run to Weights & Biases. The run folder is complete without it."""

from __future__ import annotations

import contextlib
import importlib
import json
import logging
import os
import secrets
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from types import ModuleType
from typing import TYPE_CHECKING, Any, Literal

from learned_opt._src.errors import LearnedOptError
from learned_opt._src.files import write_whole

if TYPE_CHECKING:
    import wandb

logger = logging.getLogger(__name__)

WandbMode = Literal["auto", "online", "offline", "disabled"]

# In seconds. Together these keep a start below 30 s: first the local service, then the server's answer.
SERVICE_TIMEOUT = 10.0
ONLINE_TIMEOUT = 10.0
# Seconds that the upload may take at the end; anything left stays in the folder for `wandb sync`.
FINISH_TIMEOUT = 15.0
# Seconds to wait for the answer to whether W&B asked the run to stop.
STOPPED_TIMEOUT = 5


class Tracker:
    """Mirrors a run to W&B; without a W&B run, every method does nothing.

    No method raises. The first failure is reported as one warning line, and the run continues.

    Attributes:
        status: one line for the terminal with the state of W&B.
    """

    def __init__(self, status: str, run: wandb.Run | None = None, recorded: int = 0) -> None:
        self.status = status
        self._run = run
        self._recorded = recorded
        self._warned = False

    def log(self, update: int, metrics: Mapping[str, float]) -> None:
        """Logs an update, unless it is recorded; `update` is W&B's step and must increase."""
        if update > self._recorded:
            self._attempt(lambda run: run.log(dict(metrics), step=update, commit=True))

    def summary(self, values: Mapping[str, float]) -> None:
        """Sets results of the whole run, such as the `ratio_to_best` that sweeps minimise."""
        self._attempt(lambda run: run.summary.update(dict(values)))

    def report(self, rows: Sequence[Mapping[str, Any]], figures: Mapping[str, Path]) -> None:
        """Logs the final comparison.

        Args:
            rows: the rows of the table `comparison`, as column name to value; missing columns are left
                empty.
            figures: PNG files by name.
        """

        def send(run: wandb.Run) -> None:
            import wandb

            columns = list(dict.fromkeys(name for row in rows for name in row))
            data = [[row.get(name) for name in columns] for row in rows]
            table = wandb.Table(columns=[*columns], data=data, allow_mixed_types=True)
            images = {name: wandb.Image(str(path)) for name, path in figures.items()}
            run.log({"comparison": table, **images})

        self._attempt(send)

    def artifact(self, path: Path, metadata: Mapping[str, Any]) -> None:
        """Logs the optimizer file `path` as an artifact of type `optimizer`."""

        def send(run: wandb.Run) -> None:
            import wandb

            artifact = wandb.Artifact(f"optimizer-{run.id}", "optimizer", metadata=dict(metadata))
            # Immutable: W&B uploads the file from where it is and keeps no copy of it elsewhere.
            artifact.add_file(str(path.resolve()), name=path.name, policy="immutable")
            run.log_artifact(artifact)

        self._attempt(send)

    def preempted(self) -> None:
        """Marks the run as preempted, so that a sweep hands it out again; not if W&B asked it to stop."""

        def mark(run: wandb.Run) -> None:
            try:
                _mark_preempting(run)
            except Exception:  # a SIGTERM to all processes has also ended W&B's own
                self._run = None
                with contextlib.suppress(Exception):
                    _end_service()
                _in_another_process(run)

        self._attempt(mark)

    def finish(self, exit_code: int) -> None:
        """Ends the W&B run with the exit code of the command; waits at most 15 s for uploads."""
        self._attempt(lambda run: run.finish(exit_code=exit_code))
        self._attempt(lambda run: _end_service())
        self._run = None

    def _attempt(self, call: Callable[[wandb.Run], object]) -> None:
        if self._run is None:
            return
        try:
            call(self._run)
        except Exception as error:  # no failure of W&B may stop the run
            if not self._warned:
                logger.warning(
                    "W&B: failed (%s); the run continues. Upload what was recorded later with "
                    "`wandb sync %s`.",
                    _reason(error),
                    _folder(self._run),
                )
            self._warned = True


def start_tracking(
    mode: WandbMode,
    run_dir: Path,
    config: Mapping[str, Any],
    *,
    stop: Callable[[], None] | None = None,
    last_update: int = 0,
    project: str = "learned-opt",
) -> Tracker:
    """Starts or continues the W&B run of `run_dir`; never prompts and never raises.

    Args:
        mode: `online`, `offline` and `disabled` take precedence over `WANDB_MODE` (W&B's own rule
            for an explicit mode). `auto` follows `WANDB_MODE` if it is set; otherwise it is online
            when logged in (an API key in the environment or in netrc) or started by a sweep agent,
            and disabled when not. `disabled` does not import wandb.
        run_dir: the run folder. W&B's files go to `wandb/` in it, and `wandb.json` keeps the id
            with which a resumed run continues the same W&B run.
        config: the resolved configuration, as plain values; in a sweep, the keys are those of the sweep file.
        stop: called in another thread when W&B asks the run to stop; by default the main thread is
            interrupted.
        last_update: the last update that an interrupted run made; its checkpoint may be older.
        project: the W&B project, unless `WANDB_PROJECT` names another.

    Returns:
        The tracker. If the server does not answer within 10 s or nobody is logged in, it records
        offline; if that fails too, it does nothing. Its `status` says which.
    """
    run_dir = run_dir.resolve()
    try:
        mode = _resolve(mode, run_dir)
        if mode == "disabled":
            return Tracker("W&B: disabled")
        return _start(mode, run_dir, config, stop, last_update, project)
    except Exception as error:  # no failure of W&B may stop the run
        return Tracker(f"W&B: could not start ({_reason(error)}), continuing without it")


@contextlib.contextmanager
def tracked(
    mode: WandbMode, run_dir: Path, config: Mapping[str, Any], *, stop: Callable[[], None], last_update: int
) -> Iterator[Tracker]:
    """The tracker of a run, from `start_tracking`; it finishes with the exit code of the run."""
    tracker = start_tracking(mode, run_dir, config, stop=stop, last_update=last_update)
    exit_code = 1
    try:
        yield tracker
        exit_code = 0
    except LearnedOptError as error:
        exit_code = error.exit_code
        if exit_code == 128 + signal.SIGTERM:
            tracker.preempted()
        raise
    finally:
        tracker.finish(exit_code)


def _resolve(mode: WandbMode, run_dir: Path) -> WandbMode:
    """Replaces `auto` by the mode that the environment asks for."""
    if mode != "auto":
        return mode
    if wish := os.environ.get("WANDB_MODE"):
        # W&B's other names: `dryrun` is offline; `run` and `shared` are online.
        offline: dict[str, WandbMode] = {"offline": "offline", "dryrun": "offline", "disabled": "disabled"}
        return offline.get(wish, "online")
    if "WANDB_SWEEP_ID" in os.environ or _logged_in(run_dir):
        return "online"
    return "disabled"


def _logged_in(run_dir: Path) -> bool:
    # Importing W&B takes a second, so first check whether there can be a key at all.
    keys = [os.environ.get(name) for name in ("WANDB_API_KEY", "WANDB_IDENTITY_TOKEN_FILE")]
    files = [os.environ.get("NETRC") or "~/.netrc", "~/_netrc"]
    if not (any(keys) or any(os.path.exists(os.path.expanduser(file)) for file in files)):
        return False
    wandb = _import_wandb(run_dir)
    wandb.setup(settings=wandb.Settings(silent=True))
    return wandb.login(prompt=False, verify=False)


def _import_wandb(run_dir: Path) -> ModuleType:
    """Imports wandb so that it is quiet and writes to the run folder only; the user's settings win."""
    # W&B uploads from its data folder, so an offline run is complete only if it contains that folder.
    os.environ.setdefault("WANDB_DATA_DIR", str(run_dir / "wandb"))
    os.environ.setdefault("WANDB_CACHE_DIR", str(run_dir / "wandb" / "cache"))
    # Without a network, W&B's own error reporting prints messages and waits.
    os.environ.setdefault("WANDB_ERROR_REPORTING", "false")
    return importlib.import_module("wandb")


def _start(
    mode: WandbMode,
    run_dir: Path,
    config: Mapping[str, Any],
    stop: Callable[[], None] | None,
    last_update: int,
    project: str,
) -> Tracker:
    wandb = _import_wandb(run_dir)
    stored = _stored(run_dir)
    run_id = stored.get("id") or os.environ.get("WANDB_RUN_ID") or secrets.token_hex(4)
    # Offline, W&B does not know what it has recorded of the run, and a repeated step would shift later ones.
    recorded = max(stored["recorded"], last_update) if stored else 0

    def init(mode: WandbMode) -> Any:
        wandb.setup(
            settings=wandb.Settings(
                mode=mode,
                silent=True,  # the terminal belongs to the progress line
                console="off",
                disable_code=True,
                disable_git=True,
                save_code=False,
                use_dot_wandb=False,
                x_service_wait=SERVICE_TIMEOUT,
                init_timeout=ONLINE_TIMEOUT,
                finish_timeout=FINISH_TIMEOUT,
                finish_timeout_raises=True,
                stop_fn=stop,
            )
        )
        # Without this, wandb.init would ask for a key in a terminal.
        if mode == "online" and not wandb.login(prompt=False, verify=False):
            raise LearnedOptError("not logged in: run `wandb login` or set WANDB_API_KEY")
        run = wandb.init(
            project=os.environ.get("WANDB_PROJECT") or project,
            name=os.environ.get("WANDB_NAME") or run_dir.name,
            id=run_id,
            resume="allow",
            dir=str(run_dir),
            config=dict(config),
        )
        # The id that W&B used: in a sweep it is the agent's, whatever id was given.
        write_whole(run_dir / "wandb.json", json.dumps({"id": run.id, "recorded": recorded}) + "\n")
        return run

    if mode == "offline":
        run = init("offline")
        return Tracker(f"W&B: offline, {_folder(run)}", run, recorded)
    try:
        run = init("online")
        return Tracker(f"W&B: {run.url}", run, run.step - 1)
    except Exception as error:
        with contextlib.suppress(Exception):
            _end_service()  # the service still holds the id of the run that failed to start
        run = init("offline")
        status = f"W&B: not reachable ({_reason(error)}), continuing offline, {_folder(run)}"
        return Tracker(status, run, recorded)


def _end_service() -> None:
    """Ends W&B's background process here, where its failures are caught, rather than at exit."""
    import wandb

    try:
        wandb.teardown()
    except SystemExit as error:  # W&B raises this when that process failed
        raise LearnedOptError(f"W&B's service ended with exit code {error.code}") from error


def _mark_preempting(run: wandb.Run) -> None:
    if not run.offline and not _asked_to_stop(run):
        run.mark_preempting()


def _in_another_process(run: wandb.Run) -> None:
    """Marks a run whose W&B process has ended: this process cannot have another one."""
    program = f"import sys; from {__name__} import mark_preempted; mark_preempted(sys.argv[1])"
    run_dir = Path(run.dir).parents[2]
    environment = {name: value for name, value in os.environ.items() if name != "WANDB_SERVICE"}
    command = [sys.executable, "-P", "-c", program, str(run_dir)]
    timeout = SERVICE_TIMEOUT + ONLINE_TIMEOUT + STOPPED_TIMEOUT + FINISH_TIMEOUT
    subprocess.run(command, env=environment, timeout=timeout, check=True)


def mark_preempted(run_dir: str) -> None:
    """Continues the W&B run of a run folder only to mark it as preempted and to end it."""
    tracker = start_tracking("online", Path(run_dir), {})
    tracker._attempt(_mark_preempting)
    tracker.finish(128 + signal.SIGTERM)


def _asked_to_stop(run: wandb.Run) -> bool:
    """Whether W&B asked the run to stop, which reaches it as SIGTERM from its agent, like a preemption."""
    import wandb

    query = (
        "query RunStoppedStatus($entity: String, $project: String, $run: String!) "
        "{project(entityName: $entity, name: $project) {run(name: $run) {stopped}}}"
    )
    path = {"entity": run.entity, "project": run.project, "run": run.id}
    try:  # no public function of W&B asks for it
        answer: Any = wandb.Api(timeout=STOPPED_TIMEOUT)._service_api.execute_graphql(query, path)
        return bool(answer["project"]["run"]["stopped"])
    except Exception:  # W&B cannot be reached, or its interface has changed
        return False


def _stored(run_dir: Path) -> dict[str, Any]:
    """The id of the W&B run, and the last update recorded offline; empty for a new W&B run."""
    try:
        stored = json.loads((run_dir / "wandb.json").read_text())
        return {"id": str(stored["id"]), "recorded": int(stored.get("recorded", 0))}
    except (OSError, ValueError, KeyError, TypeError, AttributeError):  # missing or damaged
        return {}


def _folder(run: wandb.Run) -> str:
    """The folder to give to `wandb sync`, relative to the current folder if possible."""
    folder = Path(run.dir).parent
    return str(folder.relative_to(Path.cwd()) if folder.is_relative_to(Path.cwd()) else folder)


def _reason(error: Exception) -> str:
    """The error in one line."""
    return " ".join(str(error).split())[:200] or type(error).__name__
