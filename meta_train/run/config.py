"""The settings of a meta-training run, their defaults per task, and their validation."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Any, Literal

import yaml
from tyro.conf import arg

from inner_tasks import OBJECTIVES, TaskSettings, find_task, task_names
from learned_opt import ARCHITECTURES, UserError, get_architecture, pretrained_names, read
from learned_opt._src.errors import printable
from learned_opt._src.files import write_whole
from learned_opt._src.native import NATIVE_ARCHITECTURES
from learned_opt._src.pretrained import find_optimizer
from meta_train.estimators import ESTIMATORS, Method, find_estimator
from meta_train.outer.optimizers import OuterConfig, find_outer_optimizer
from meta_train.report.evaluation import check_host_memory
from meta_train.run.settings_file import Value, read_settings
from meta_train.run.tracking import WandbMode


@dataclass(frozen=True)
class TaskConfig:
    """The task that the inner optimizer trains."""

    name: Annotated[
        str,
        arg(
            name="task",
            prefix_name=False,
            help=f"Inner task: {', '.join(task_names())}, or your own as module:name.",
        ),
    ] = "digits-mlp"
    hidden: tuple[int, ...] = (32,)
    """Widths of the hidden layers."""
    batch_size: int = 64
    """Examples per inner step."""
    horizon: int = 200
    """T, inner steps per episode."""
    objective: Annotated[
        str, arg(help=f"Loss of an inner step that meta-training lowers: {', '.join(OBJECTIVES)}.")
    ] = "training-loss"

    @property
    def settings(self) -> TaskSettings:
        """The settings that the task is built from."""
        return TaskSettings(self.hidden, self.batch_size, self.horizon)


@dataclass(frozen=True)
class EstimatorConfig:
    """How the meta-gradient is estimated."""

    name: Annotated[
        str,
        arg(
            name="estimator",
            prefix_name=False,
            help=f"Estimator of the meta-gradient: {', '.join(ESTIMATORS)}, or your own as module:name.",
        ),
    ] = "pes"
    sigma: float = 0.1
    """Standard deviation of the perturbations of theta, for estimators that perturb it."""
    truncation: int = 50
    """K, inner steps per update; full-es and bptt take whole episodes."""
    particles: int = 16
    """Number of particles (per task, in a distribution); an antithetic pair counts as two."""
    perturbation_period: int | None = None
    """Number of steps after which gpes draws a new perturbation, a multiple of K."""
    analytic: bool = False
    """Use the derivative of the window as a control variate (pes)."""

    @property
    def method(self) -> Method:
        """The estimator of this name."""
        return find_estimator(self.name)

    @property
    def units(self) -> int:
        """Number of antithetic pairs, or of particles for estimators without pairs."""
        return self.particles // self.method.particles

    @property
    def settings(self) -> dict[str, Any]:
        """The settings that this estimator takes, and no others."""
        return {name: getattr(self, name) for name in self.method.settings}


@dataclass(frozen=True)
class EvaluationConfig:
    """The comparison with tuned baselines at the end."""

    steps: int = 200
    """Inner steps of each run."""
    seeds: int = 8
    """Number of seeds that each optimizer is reported on; learning rates are tuned on as many others."""
    learning_rates: int = 15
    """Number of learning rates to try for each baseline, logarithmically spaced from 1e-4 to 1."""


@dataclass(frozen=True)
class Config:
    """All settings of a run; saved in its folder as config.yaml."""

    task: TaskConfig = field(default_factory=TaskConfig)
    estimator: EstimatorConfig = field(default_factory=EstimatorConfig)
    outer: OuterConfig = field(default_factory=OuterConfig)
    evaluation: EvaluationConfig = field(default_factory=EvaluationConfig)
    optimizer: Annotated[
        str,
        arg(
            help=f"Architecture of the learned optimizer: {', '.join(ARCHITECTURES)}, or your own as "
            "module:name."
        ),
    ] = "muon-mlp"
    start_from: str | None = None
    """Weights to start from: an optimizer file, a run folder, or the name of a pretrained optimizer."""
    learn: tuple[str, ...] = ()
    """Parts of theta to learn, such as direction or step/Dense_1, while the rest stays; by default all."""
    updates: int = 320
    """Number of outer updates; a resumed run may be given more, which also lengthens its cosine."""
    seed: int = 0
    """Seed of the whole run."""
    devices: Literal["auto"] | int = "auto"
    """Number of devices to spread the particles over. On a CPU, auto makes one XLA device per core."""
    chunk: Literal["auto"] | int = "auto"
    """Number of particles that a device unrolls at once; auto is 1 on a CPU and all of them on a GPU."""
    native: bool = False
    """Run mlp or metz2019 on a CPU as a native kernel, which is faster and takes a C++ compiler."""
    data_dir: Path | None = None
    """Folder of TFDS data sets; by default TFDS_DATA_DIR, or else ~/tensorflow_datasets."""
    wandb: WandbMode = "auto"
    """Weights & Biases; auto is online when logged in or in a sweep, and otherwise disabled."""
    checkpoint_every: int = 100
    """Number of updates between checkpoints."""


# Steps and updates are counted in 32 bits.
MAX_COUNT = 2**31 - 1
# A network of this many layers would take hours to compile.
MAX_LAYERS = 100

# Settings that only some estimators have, and that are off by default.
_OPTIONS = {
    "perturbation_period": "--estimator.perturbation-period",
    "analytic": "--estimator.analytic",
}

# Settings of earlier versions, and why they are gone.
_GONE = {
    "--outer.clip-norm": "each meta-gradient is divided by its norm instead of clipped; remove it to "
    "start a new run, and resume an old one with the version that it was started with, 0.1",
}

# The settings that may change when a run is resumed.
MAY_CHANGE_ON_RESUME = ("devices", "chunk", "native", "wandb", "data_dir", "updates")

# Meta-training defaults that differ from the general ones, which docs/settings.md measures. The defaults of
# the tasks themselves (widths, batch size, horizon) are set where the tasks are registered.
_TASK_DEFAULTS: dict[str, dict[str, Any]] = {
    # docs/generalist.md says why these weights.
    "general-tasks": {
        "learn": ("schedule/decay", "schedule/fade", "schedule/power", "step/Dense_1"),
        "updates": 550,
        "estimator": EstimatorConfig(name="nres"),
        "outer": OuterConfig(learning_rate=0.02, average=0.3),
    },
    "small-tasks": {
        "optimizer": "mlp",
        "updates": 20_000,
        "estimator": EstimatorConfig(sigma=0.02, truncation=25, particles=4),
        "outer": OuterConfig(learning_rate=3e-3),
        "evaluation": EvaluationConfig(steps=200),
    },
    **dict.fromkeys(("mnist-mlp", "fashion-mnist-mlp"), {"updates": 1_000}),
    # A training run of this network takes seconds on two cores, so there are fewer and shorter ones.
    "cifar10-mlp": {
        "updates": 280,
        "estimator": EstimatorConfig(particles=8),
        "checkpoint_every": 20,
        "evaluation": EvaluationConfig(steps=100, learning_rates=8),
    },
}
# Default objectives of the tasks that differ from the general one.
_OBJECTIVES = {
    **dict.fromkeys(("digits-mlp", "cifar10-mlp"), "mean-and-validation-end"),
    "general-tasks": "mean-and-end",
}


def code_names(config: Config) -> dict[str, str]:
    """The settings that may be a ``module:name``, by flag."""
    return {
        "--task": config.task.name,
        "--optimizer": config.optimizer,
        "--estimator": config.estimator.name,
    }


def start_file(start_from: str) -> Path:
    """The optimizer file that ``--start-from`` names.

    Raises:
      UserError: there is no such file.
    """
    path = find_optimizer(start_from)
    if path is None:
        raise UserError(
            f"--start-from is {start_from}, which is not an optimizer file, a run folder or a "
            f"pretrained optimizer ({', '.join(pretrained_names())})"
        )
    return path


def default_config(task: str, start_from: str | None = None, optimizer: str | None = None) -> Config:
    """The defaults for a task.

    Args:
      task: its name.
      start_from: the weights to start from, if any; the default architecture is then that of these weights.
      optimizer: the architecture that will replace the default one, if any; the weights are then not read.

    Raises:
      UserError: there is no such task, or there are no such weights.
    """
    settings = find_task(task).settings
    short = task.rpartition(":")[2]
    config = Config(
        **{
            "task": TaskConfig(task, *settings, _OBJECTIVES.get(short, TaskConfig.objective)),
            "estimator": EstimatorConfig(truncation=min(EstimatorConfig.truncation, settings.horizon)),
            "evaluation": EvaluationConfig(steps=settings.horizon),
            **_TASK_DEFAULTS.get(short, {}),
        }
    )
    usual = config.optimizer
    if start_from and optimizer is None:
        optimizer = read(start_file(start_from)).architecture
        config = dataclasses.replace(config, optimizer=optimizer)
    # The names of parts of theta are those of the usual architecture.
    return config if optimizer in (None, usual) else dataclasses.replace(config, learn=())


def validate(config: Config) -> None:
    """Check the settings before anything is run.

    Raises:
      UserError: names the first invalid setting.
    """
    find_task(config.task.name)
    get_architecture(config.optimizer)
    find_outer_optimizer(config.outer.optimizer)
    estimator, horizon = config.estimator, config.task.horizon
    known = [field.name for field in dataclasses.fields(estimator) if field.name != "name"]
    for setting in estimator.method.settings:
        if setting not in known:
            raise UserError(
                f"the estimator '{estimator.name}' takes a setting '{setting}', which does not exist; "
                f"available: {', '.join(known)}"
            )
    if len(config.task.hidden) > MAX_LAYERS:
        raise UserError(
            f"--task.hidden has {len(config.task.hidden)} layers; it may have at most {MAX_LAYERS}"
        )
    counts: dict[str, Any] = {
        "--updates": config.updates,
        "--checkpoint-every": config.checkpoint_every,
        "--task.batch-size": config.task.batch_size,
        "--task.horizon": horizon,
        "--estimator.perturbation-period": estimator.perturbation_period,
        "--evaluation.steps": config.evaluation.steps,
        "--evaluation.seeds": config.evaluation.seeds,
        "--evaluation.learning-rates": config.evaluation.learning_rates,
        "--devices": config.devices,
        "--chunk": config.chunk,
    }
    hidden = (("--task.hidden", width) for width in config.task.hidden)
    for flag, count in (*counts.items(), *hidden):
        if isinstance(count, int):
            check_count(flag, count)
    if not 0 <= config.seed < 2**32:
        raise UserError(f"--seed is {config.seed}; it must lie between 0 and {2**32 - 1}")
    if "truncation" in estimator.method.settings and not 1 <= estimator.truncation <= horizon:
        raise UserError(
            f"--estimator.truncation (K) is {estimator.truncation}; it must lie between 1 and the "
            f"horizon T = {horizon} (--task.horizon)"
        )
    if estimator.method.particles == 2 and (estimator.particles < 2 or estimator.particles % 2):
        raise UserError(
            f"--estimator.particles is {estimator.particles}; particles come in antithetic pairs, so it "
            "must be even and at least 2"
        )
    check_count("--estimator.particles", estimator.particles)
    for option, flag in _OPTIONS.items():
        if getattr(estimator, option) and option not in estimator.method.settings:
            takes = [name for name, method in ESTIMATORS.items() if option in method.settings]
            raise UserError(f"{flag} is a setting of {', '.join(takes)}, and not of {estimator.name}")
    if estimator.name == "gpes" and not estimator.perturbation_period:
        raise UserError(
            "gpes needs --estimator.perturbation-period, the number of steps after which a new perturbation "
            f"is drawn: a multiple of K = {estimator.truncation}"
        )
    for flag, value in (
        ("--estimator.sigma", estimator.sigma),
        ("--outer.learning-rate", config.outer.learning_rate),
    ):
        if not 0 < value < float("inf"):
            raise UserError(f"{flag} is {value}; it must be above 0 and finite")
    if not 0 <= config.outer.final_fraction <= 1:
        raise UserError(
            f"--outer.final-fraction is {config.outer.final_fraction}; it must lie between 0 and 1"
        )
    if not 0 <= config.outer.average <= 1:
        raise UserError(f"--outer.average is {config.outer.average}; it must lie between 0 and 1")
    if config.native and config.optimizer not in NATIVE_ARCHITECTURES:
        raise UserError(
            f"--native is for {' and '.join(NATIVE_ARCHITECTURES)}, and the optimizer is {config.optimizer}; "
            "leave --native out"
        )
    check_host_memory(*dataclasses.astuple(config.evaluation))


def check_count(flag: str, value: int) -> None:
    """Check a number of things.

    Raises:
      UserError: there is none, or there are more than a counter of 32 bits can hold.
    """
    if value < 1:
        raise UserError(f"{flag} is {value}; it must be at least 1")
    if value > MAX_COUNT:
        raise UserError(f"{flag} is {value}; it must be at most {MAX_COUNT}")


def check_resume(saved: Config, now: Config) -> None:
    """Check that a run may be resumed with these settings.

    Raises:
      UserError: a setting differs that may not change, or there are fewer updates than before.
    """
    before, after = _flat(to_dict(saved)), _flat(to_dict(now))
    changed = [name for name in before if before[name] != after[name]]
    refused = [name for name in changed if name not in MAY_CHANGE_ON_RESUME]
    if refused:
        flags = ", ".join(f"{name} (was {before[name]}, now {after[name]})" for name in refused)
        raise UserError(
            f"the run to be resumed has a different configuration: {flags}; only "
            f"{', '.join(MAY_CHANGE_ON_RESUME)} may change on a resume. Start a new run for anything else"
        )
    if now.updates < saved.updates:
        raise UserError(
            f"--updates is {now.updates}, but the run to be resumed has {saved.updates}; a resume may only "
            "increase the number"
        )


def to_dict(config: Config) -> dict[str, Any]:
    """The configuration as plain JSON values."""
    values = dataclasses.asdict(config)
    values["task"]["hidden"] = list(config.task.hidden)
    values["learn"] = list(config.learn)
    values["data_dir"] = config.data_dir and str(config.data_dir)
    return values


def by_flag(config: Config) -> dict[str, Any]:
    """The settings by the names of their flags, as in ``outer.learning-rate``."""
    return {_flag(name).removeprefix("--"): value for name, value in _flat(to_dict(config)).items()}


def save_config(config: Config, path: Path) -> None:
    """Write the configuration as YAML, whole or not at all."""
    write_whole(path, yaml.safe_dump(to_dict(config), sort_keys=False))


def config_flags(path: Path) -> list[str]:
    """A configuration file as the equivalent command-line flags.

    So a file is checked in the same way as flags, and later flags override it. It yields the values of
    settings, and no other flags.

    Raises:
      UserError: the file cannot be read, is not a mapping, has an unknown setting or one twice, or has an
        invalid value.
    """
    given = [(_flag(name), value) for name, value in read_settings(path)]
    known = {_flag(name): value for name, value in _flat(to_dict(Config())).items()}
    names = [flag for flag, _ in given]
    for flag in names:
        if flag in _GONE:
            raise UserError(f"the configuration {path} has the setting {flag}, which is gone: {_GONE[flag]}")
    if unknown := set(names) - known.keys():
        raise UserError(
            f"the configuration {path} has unknown settings: {', '.join(sorted(unknown))}; "
            "meta-train --help lists all settings"
        )
    if twice := {flag for flag in known if names.count(flag) > 1}:
        raise UserError(f"the configuration {path} sets {', '.join(sorted(twice))} more than once")
    return [word for flag, value in given for word in _words(path, flag, value, known[flag])]


def _words(path: Path, flag: str, value: Value, default: Any) -> list[str]:
    """A setting of a file as words of a command line."""
    if value is None:
        return []
    has = f"the configuration {path} has '{printable(value)}' for {flag}"
    texts = value if isinstance(value, list) else [value]
    if any(text.startswith("-") and not text[1:2].isdigit() for text in texts):
        raise UserError(f"{has}; a value must not look like a flag")
    if any("\0" in text for text in texts):
        raise UserError(f"{has}; a value must not contain a null character")
    if isinstance(default, list):
        return [flag, *texts]
    if isinstance(value, list):
        raise UserError(f"{has}, but it takes a single value, not a list")
    if isinstance(default, bool):
        switch = yaml.SafeLoader.bool_values.get(value.lower())
        if switch is None:
            raise UserError(f"{has}; use true or false")
        return [flag] * switch
    return [f"{flag}={value}"]


def _flag(name: str) -> str:
    """``a_b.name`` as ``--a-b``."""
    return "--" + name.removesuffix(".name").replace("_", "-")


def _flat(values: dict[str, Any], prefix: str = "") -> dict[str, Any]:
    """``{"a": {"b": 1}}`` as ``{"a.b": 1}``."""
    flat: dict[str, Any] = {}
    for name, value in values.items():
        flat |= _flat(value, f"{prefix}{name}.") if isinstance(value, dict) else {f"{prefix}{name}": value}
    return flat
