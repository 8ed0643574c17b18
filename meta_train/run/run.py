"""One meta-training run from start to finish: the outer loop, and all that surrounds it."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from rich.console import Console

import learned_opt
from checkpoints import CheckpointStore
from inner_tasks import TaskDistribution, Training, find_objective, find_task
from learned_opt import LearnedOptError, UserError
from learned_opt._src.pretrained import find_optimizer
from meta_train.devices import processes
from meta_train.devices.choice import start_devices, units_at_once
from meta_train.estimators.base import Estimator, Theta
from meta_train.outer.loop import RunState, Update, initial_state, outer_loop
from meta_train.outer.mixture import mixture
from meta_train.outer.optimizers import outer_optimizer
from meta_train.outer.population import Population, population
from meta_train.report.baselines import DEFAULT_BASELINES, baseline
from meta_train.report.comparison import Comparison, compare, learning_rates
from meta_train.report.evaluation import Contestant, find_criterion, metrics_of
from meta_train.report.files import write_comparison
from meta_train.report.tables import card, print_comparison, rows
from meta_train.run import saving
from meta_train.run.config import Config, code_names, save_config, to_dict
from meta_train.run.folder import MetricsFile, RunFolder, read_metrics
from meta_train.run.interrupt import Interrupted, StopRequest
from meta_train.run.progress import ProgressLine, RunsLine
from meta_train.run.tracking import Tracker, start_tracking

# So many updates in a row without a finite meta-gradient, and the run gives up.
MAX_SKIPPED = 20


class Outputs(NamedTuple):
    """What a run writes to while it learns."""

    console: Console
    store: CheckpointStore
    metrics: MetricsFile
    tracker: Tracker


class Setup(NamedTuple):
    """What a configuration stands for."""

    members: tuple[str, ...]  # names of the tasks that are learned from
    training: Training  # the first of them, which the report is about
    populate: Callable[[int], Population]  # of so many units (antithetic pairs, or single particles)
    population: Population  # of as many as configured
    devices: int
    chunk: int  # particles that a device works on at once
    pairs_at_once: int  # units, likewise


def prepare(config: Config) -> Setup:
    """Load the data, and build the problem and the population that learns from it.

    Raises:
      UserError: the data is missing, the particles cannot be spread over the devices, or the estimator
        cannot do the task.
    """
    devices = start_devices(config.devices, config.estimator.units)
    task = find_task(config.task.name).build(config.task.settings)
    members = task.members if isinstance(task, TaskDistribution) else {config.task.name: task}
    optimizer = learned_opt.get_architecture(config.optimizer)
    chunk = units_at_once(config.chunk, config.estimator.particles)
    method = config.estimator.method
    estimator = partial(method.make, **config.estimator.settings)
    if method.particles == 2:
        estimator = partial(estimator, chunk=chunk)
    trainings = [
        Training(None, member, optimizer, member.horizon, find_objective(config.task.objective, member))
        for member in members.values()
    ]
    for training in trainings:
        _check_estimator(estimator, training)
    trainings = [dataclasses.replace(each, data=each.task.load(config.data_dir)) for each in trainings]
    at_once = max(1, chunk // method.particles)

    def populate(units: int) -> Population:
        each = [population(estimator, own, units=units, devices=devices, chunk=at_once) for own in trainings]
        return mixture(each, config.outer.clip_norm) if len(members) > 1 else each[0]

    return Setup(
        tuple(members), trainings[0], populate, populate(config.estimator.units), devices, chunk, at_once
    )


def _check_estimator(make: Callable[[Training], Estimator], training: Training) -> None:
    """Let the estimator refuse a problem that it cannot do, before data is loaded or anything is run."""

    def start(key: jax.Array) -> Any:
        return make(training).init(key, training.init_theta(key), 0.0)

    jax.eval_shape(start, jax.random.key(0))


def meta_train(config: Config, setup: Setup, folder: RunFolder, console: Console, resume: bool) -> None:
    """Meta-train, export the optimizer, compare it with tuned baselines, and write the report.

    Args:
      config: the settings, validated.
      setup: what they stand for.
      folder: the run's folder: new, or that of the run to go on with.
      console: where progress and results are shown.
      resume: go on from the newest checkpoint of the folder.

    Raises:
      Interrupted: a signal asked for it; the state is saved.
      LearnedOptError: the meta-gradient stayed non-finite, or the disk failed.
    """
    code = {flag: name for flag, name in code_names(config).items() if ":" in name}
    flags = " ".join(f"{flag} {name}" for flag, name in {"--resume": folder.path, **code}.items())
    advice = f"go on with: meta-train {flags}"
    with saving.open_store(folder.checkpoints) as store:
        if resume:
            restored = saving.restore(folder.checkpoints, store, setup.population, start(config, setup))
            for sentence in restored.damaged:
                console.print(sentence, style="yellow", highlight=False)
            console.print(f"resumed {folder.path} at update {restored.update}", highlight=False)
            state, done = restored.state, restored.update
            position = restored.metadata["metrics_position"]
        else:
            # From its first moment a run can be resumed.
            theta = learned_opt.read(folder.origin).theta if folder.origin.exists() else None
            state, done, position = start(config, setup, theta), 0, 0
            saving.save(store, setup.population, state, done, position)
            store.wait()
        if processes.is_primary():
            save_config(config, folder.config)
        mode = config.wandb if processes.is_primary() else "disabled"
        tracker = start_tracking(mode, folder.path, to_dict(config))
        if config.wandb != "disabled":
            console.print(tracker.status, highlight=False)
        exit_code = 1
        try:
            with StopRequest() as stop:
                with MetricsFile(folder.metrics if processes.is_primary() else None, position) as metrics:
                    outputs = Outputs(console, store, metrics, tracker)
                    theta = _learn(config, setup, state, done, outputs, stop, advice)
                if processes.is_primary():
                    _export(config, folder, theta)
                console.print(f"optimizer: {folder.optimizer}", highlight=False)

                def check() -> None:
                    if asked := _signal(stop):
                        raise Interrupted(f"stopped during the comparison; {advice}", asked)

                learned = Contestant(setup.training.optimizer, theta)
                steps = config.evaluation.steps
                # Runs show the training loss, whatever was meta-trained for; the criterion follows that.
                training = Training(setup.training.data, setup.training.task, learned.optimizer, steps)
                comparison = compare(
                    setup.members[0],
                    training,
                    {"learned": learned} | {name: baseline(name, steps) for name in DEFAULT_BASELINES},
                    seeds=config.evaluation.seeds,
                    rates=learning_rates(config.evaluation.learning_rates),
                    criterion=find_criterion([config.task.objective], [metrics_of(training)]),
                    devices=setup.devices,
                    chunk=setup.chunk,
                    watch=partial(RunsLine, console, check),
                )
                if processes.is_primary():
                    # The file as it was is whole already; now it gets its card.
                    _export(config, folder, theta, [card(comparison, "learned")])
                    tracker.artifact(folder.optimizer, {"config": to_dict(config)})
                    _report(config, folder, comparison, tracker)
                print_comparison(comparison, console)
                console.print(f"report: {folder.report}", highlight=False)
                exit_code = 0
        except LearnedOptError as error:
            exit_code = error.exit_code
            raise
        finally:
            tracker.finish(exit_code)
    # A process that left before the report is written would be taken for dead.
    processes.barrier("the report is written")


def _signal(stop: StopRequest) -> int:
    """The signal that any process was sent, 0 if none was: all of them stop together."""
    return processes.global_max(stop.signal or 0)


def origin(config: Config) -> Path | None:
    """The optimizer file that a run is to start from, if there is one.

    Raises:
      UserError: it is not there, or no whole optimizer file, or of another architecture.
    """
    if config.start_from is None:
        return None
    path = find_optimizer(config.start_from)
    if path is None:
        raise UserError(
            f"--start-from is {config.start_from}, which is no optimizer file, no folder of a run, and no "
            f"pretrained optimizer ({', '.join(learned_opt.pretrained_names())})"
        )
    architecture = learned_opt.read(path).architecture
    if architecture != config.optimizer:
        raise UserError(
            f"--start-from {config.start_from} holds a '{architecture}', and --optimizer is "
            f"'{config.optimizer}'; give --optimizer {architecture}"
        )
    return path


def start(config: Config, setup: Setup, theta: Theta | None = None) -> RunState:
    """The state before the first update, a function of the seed and the weights to start from.

    Args:
      config: the settings.
      setup: what they stand for.
      theta: the weights; fresh ones, if there are none.

    Raises:
      UserError: the weights are of another number of parameter tensors than the task has.
    """
    key = jax.random.key(config.seed)
    fresh = jax.jit(setup.training.init_theta)(jax.random.fold_in(key, 0))
    theta = fresh if theta is None else jax.tree.map(jnp.asarray, theta)
    if jax.tree.map(jnp.shape, theta) != jax.tree.map(jnp.shape, fresh):
        raise UserError("--start-from holds hyperparameters for another number of tensors than the task has")
    return initial_state(setup.population, outer_optimizer(config.outer, config.updates), theta, key)


def _learn(
    config: Config,
    setup: Setup,
    state: RunState,
    done: int,
    outputs: Outputs,
    stop: StopRequest,
    advice: str,
) -> Theta:
    """Go through the updates; record, show and save what they give, and stop if a signal asks for it."""
    tx = outer_optimizer(config.outer, config.updates)
    with ProgressLine(outputs.console, config.updates, done) as progress:
        for update in outer_loop(setup.population, tx, state, done, config.updates):
            number, state = update.number, update.state
            record = _record(update)
            outputs.metrics.write(record)
            outputs.tracker.log(number, {k: v for k, v in record.items() if v is not None and k != "update"})
            progress.advance(
                number, float(update.metrics["loss"]), float(update.metrics["steps"]), update.seconds
            )
            asked = _signal(stop)
            if number % config.checkpoint_every == 0 or number == config.updates or asked:
                saving.save(outputs.store, setup.population, state, number, outputs.metrics.position)
            if asked:
                outputs.store.wait()
                raise Interrupted(
                    f"stopped at update {number} of {config.updates}, and saved; {advice}", asked
                )
            if state.skipped >= MAX_SKIPPED:
                raise LearnedOptError(
                    f"the meta-gradient was not finite {MAX_SKIPPED} updates in a row, up to update "
                    f"{number}; try a smaller --estimator.sigma or --outer.learning-rate, or a task with "
                    "a max_loss"
                )
    outputs.store.wait()
    return state.theta


def _record(update: Update) -> dict[str, Any]:
    """A line of the metrics file; a value that is not finite is null."""
    values = {name: float(value) for name, value in update.metrics.items()}
    return {
        "update": update.number,
        **{name: value if math.isfinite(value) else None for name, value in values.items()},
        "skipped": int(update.state.skipped > 0),
        "seconds": update.seconds,
    }


def _export(
    config: Config, folder: RunFolder, theta: Theta, comparisons: Sequence[Mapping[str, Any]] = ()
) -> None:
    """Write the optimizer file, with a summary of how it came about that equal runs have in common."""
    settings = to_dict(config)
    lines = list(read_metrics(folder.metrics))
    last = [m["loss"] for m in lines[-max(1, len(lines) // 10) :] if m["loss"] is not None]
    learned_opt.save(
        folder.optimizer,
        config.optimizer,
        jax.tree.map(np.asarray, theta),
        {name: settings[name] for name in ("task", "estimator", "outer", "updates", "seed")}
        | {
            **_start_from(folder),
            "inner_steps": int(sum(m["steps"] for m in lines)),
            "final_meta_loss": float(np.mean(last)) if last else None,
        },
        comparisons,
    )


def _start_from(folder: RunFolder) -> dict[str, str]:
    """The digest of the weights that the run started from, if they were not fresh."""
    if not folder.origin.exists():
        return {}
    return {"start_from": learned_opt.read(folder.origin).metadata["digest"]}


def _report(config: Config, folder: RunFolder, comparison: Comparison, tracker: Tracker) -> None:
    """Draw and write the report, and hand it to the tracker."""
    from meta_train.report.figures import draw_meta_training

    folder.report.mkdir(exist_ok=True)
    meta = folder.report / "meta_training.png"
    draw_meta_training(list(read_metrics(folder.metrics)), meta)
    pictures = write_comparison(comparison, folder.report, {"updates": config.updates})
    tracker.report(rows(comparison), {path.stem: path for path in (*pictures, meta)})
    ratios = {
        "ratio_to_best": comparison.ratio_to_best("learned"),
        "ratio_to_adam": comparison.ratio_to_adam("learned"),
    }
    tracker.summary({name: ratio for name, ratio in ratios.items() if math.isfinite(ratio)})
