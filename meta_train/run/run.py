"""One meta-training run: start or resume, learn, export, report."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from contextlib import closing
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import jax
import numpy as np
from rich.console import Console

import learned_opt
from checkpoints import CheckpointStore, Restored, newest_update
from learned_opt._src.files import make_folder, write_whole
from meta_train.devices.processes import barrier, global_max, is_primary
from meta_train.estimators.base import Theta
from meta_train.outer.loop import result
from meta_train.report.comparison import Comparison
from meta_train.report.files import write_report
from meta_train.report.suite import overall, print_suite
from meta_train.report.tables import card, rows
from meta_train.run import saving
from meta_train.run.config import Config, by_flag, code_names, save_config, to_dict
from meta_train.run.folder import MetricsFile, RunFolder, read_metrics
from meta_train.run.interrupt import StopRequest
from meta_train.run.learning import compared, summary, updates
from meta_train.run.setup import Setup, start
from meta_train.run.tracking import Tracker, tracked


class Outputs(NamedTuple):
    """A run's outputs, and the stop request that it checks."""

    folder: RunFolder
    store: CheckpointStore
    console: Console
    tracker: Tracker
    stop: StopRequest


def meta_train(
    config: Config,
    setup: Setup,
    folder: RunFolder,
    console: Console,
    *,
    resume: bool,
    start_from: Path | None = None,
) -> None:
    """Meta-train, export the optimizer, compare it with tuned baselines, and write the report.

    Args:
      config: the settings, validated.
      setup: the objects built from them.
      folder: the run's folder, locked: new, or that of the run to resume.
      console: where progress and results are shown.
      resume: continue from the newest checkpoint in the folder; from the start, if there is none yet.
      start_from: the optimizer file that the run starts from, if it does not start from fresh weights.

    Raises:
      Interrupted: a signal asked the run to stop; the state is saved.
      LearnedOptError: the meta-gradient stayed non-finite, or the disk failed.
    """
    with saving.open_store(folder.checkpoints) as store:
        begun = start_or_resume(config, setup, folder, store, console, resume, start_from)
        mode = config.wandb if is_primary() else "disabled"
        with (
            StopRequest() as stop,
            tracked(
                mode, folder.path, by_flag(config), stop=stop.request, last_update=_last_update(folder)
            ) as tracker,
        ):
            if config.wandb != "disabled":
                console.print(tracker.status, highlight=False, markup=False)
            outputs = Outputs(folder, store, console, tracker, stop)
            theta = learn(config, setup, begun, outputs)
            export(config, folder, setup.complete(theta))
            console.print(f"optimizer: {folder.optimizer}", highlight=False, markup=False, soft_wrap=True)
            report(config, setup, theta, outputs)
    # A process that exits before the report is written would be considered lost.
    barrier("the report is written")


def start_or_resume(
    config: Config,
    setup: Setup,
    folder: RunFolder,
    store: CheckpointStore,
    console: Console,
    resume: bool,
    start_from: Path | None,
) -> Restored:
    """The state that a run continues from; a run without any update saves the state that it starts from."""
    # Process 0 writes the metrics, and its view decides.
    if resume and global_max(is_primary() and has_updates(folder)):
        begun = saving.restore(folder.checkpoints, store, setup.population, start(config, setup))
        for sentence in begun.damaged:
            console.print(sentence, style="yellow", highlight=False, markup=False)
    else:
        theta = learned_opt.read(start_from).theta if start_from else None
        begun = Restored(0, start(config, setup, theta), {}, [])
        if start_from and is_primary() and not folder.origin.exists():
            write_whole(folder.origin, start_from.read_bytes())
        saving.save(store, setup.population, begun.state, 0)
        store.wait()
    if resume:
        console.print(f"resumed {folder.path} at update {begun.update}", highlight=False, markup=False)
        if is_primary():
            save_config(config, folder.config)
    return begun


def has_updates(folder: RunFolder) -> bool:
    """Whether a run has made an update; one that has not begins like a new one."""
    return bool(newest_update(folder.checkpoints)) or (
        folder.metrics.exists() and folder.metrics.stat().st_size > 0
    )


def learn(config: Config, setup: Setup, begun: Restored, outputs: Outputs) -> Theta:
    """Run the updates; record, show and save their results, and stop if a signal asks for it."""
    folder, store, console, tracker, stop = outputs
    theta, advice = result(begun.state), _how_to_go_on(config, folder)
    with (
        MetricsFile(folder.metrics if is_primary() else None, begun.update) as metrics,
        closing(updates(setup, begun.state, begun.update, config.updates, console)) as made,
    ):
        if metrics.lost:
            console.print(
                f"{folder.metrics}: the lines of {metrics.lost} of the first {begun.update} updates are "
                "damaged or missing; the run goes on, and the optimizer file does not count their steps",
                style="yellow",
                highlight=False,
                markup=False,
            )
        if is_primary():
            for line in read_metrics(folder.metrics):  # W&B may have lost the last ones before a kill
                _log(tracker, line)
        for update, record in made:
            number, state = update.number, update.state
            theta = result(state)
            metrics.write(record)
            _log(tracker, record)
            stopping = stop.requested()
            if number % config.checkpoint_every == 0 or number == config.updates or stopping:
                metrics.sync()
                saving.save(store, setup.population, state, number)
            if stopping:
                store.wait()
                stop.check(f"stopped at update {number} of {config.updates} and saved; {advice}")
    store.wait()
    return theta


def export(
    config: Config, folder: RunFolder, theta: Theta, comparisons: Sequence[Mapping[str, Any]] = ()
) -> None:
    """Write the optimizer file, with a summary of its meta-training that is the same for equal runs."""
    if not is_primary():
        return
    origin = learned_opt.read(folder.origin).metadata["digest"] if folder.origin.exists() else None
    said = summary(config, list(read_metrics(folder.metrics)), origin)
    weights = jax.tree.map(np.asarray, theta)
    learned_opt.save(folder.optimizer, config.optimizer, weights, said, comparisons)


def report(config: Config, setup: Setup, theta: Theta, outputs: Outputs) -> None:
    """Compare the optimizer with tuned baselines; write and show the results."""
    folder, _, console, tracker, stop = outputs
    check = partial(stop.check, f"stopped during the comparison; {_how_to_go_on(config, folder)}")
    suite = compared(setup, theta, config.task.objective, config.evaluation, console, check)
    if is_primary():
        # The optimizer file already exists; now its card is added.
        export(config, folder, setup.complete(theta), [card(comparison, "learned") for comparison in suite])
        tracker.artifact(folder.optimizer, {"config": to_dict(config)})
        _write_report(config, folder, suite, tracker)
    print_suite(suite, console)
    console.print(f"report: {folder.report}", highlight=False, markup=False, soft_wrap=True)


def _write_report(config: Config, folder: RunFolder, suite: Sequence[Comparison], tracker: Tracker) -> None:
    """Draw and write the report, and pass it to the tracker."""
    from meta_train.report.figures import draw_meta_training

    make_folder(folder.report)
    meta = folder.report / "meta_training.png"
    draw_meta_training(list(read_metrics(folder.metrics)), meta)
    pictures = write_report(config.task.name, suite, folder.report, {"updates": config.updates})
    table = [{"task": comparison.task, **row} for comparison in suite for row in rows(comparison)]
    tracker.report(table, {path.stem: path for path in (*pictures, meta)})
    found = overall(suite, "learned")
    ratios = {name: found[name] for name in ("ratio_to_best", "ratio_to_adam")}
    tracker.summary({name: ratio for name, ratio in ratios.items() if ratio is not None})


def _log(tracker: Tracker, record: Mapping[str, Any]) -> None:
    values = {name: value for name, value in record.items() if value is not None and name != "update"}
    tracker.log(record["update"], values)


def _last_update(folder: RunFolder) -> int:
    """The last update in the metrics file, which may be later than the newest checkpoint."""
    if not folder.metrics.exists():
        return 0
    return max((line["update"] for line in read_metrics(folder.metrics)), default=0)


def _how_to_go_on(config: Config, folder: RunFolder) -> str:
    code = {flag: name for flag, name in code_names(config).items() if ":" in name}
    flags = " ".join(f"{flag} {name}" for flag, name in {"--resume": folder.path, **code}.items())
    return f"continue with: meta-train {flags}"
