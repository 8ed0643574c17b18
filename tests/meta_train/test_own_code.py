"""User-defined tasks, optimizers and estimators by `module:name`, if the user names them.

And the commands in a folder with the user's files, whatever their names.
"""

from __future__ import annotations

import os
import re
import subprocess
import sys
import sysconfig
import threading
from collections.abc import Iterator
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import learned_opt
from tests.marks import slow
from tests.meta_train import command
from tests.meta_train.command import TINY, Run, against, meta_train, words

MY_CODE = """
import jax
import jax.numpy as jnp

import learned_opt
from inner_tasks import Task, TaskSettings, register_task
from meta_train.estimators import Method, truncated_es


@register_task("bowl", TaskSettings(horizon=6))
def bowl(settings: TaskSettings) -> Task:
    def load(data_dir):
        from my_data import target  # beside this file, and imported late

        return target

    return Task(
        init=lambda key: {"x": jax.random.normal(key, (3,))},
        sample=lambda data, key: data + 0.1 * jax.random.normal(key),
        loss=lambda params, target: jnp.mean((params["x"] - target) ** 2),
        metrics=lambda params, data: {"distance": jnp.linalg.norm(params["x"] - data)},
        load=load,
        horizon=settings.horizon,
    )


def rule() -> learned_opt.LearnedOptimizer:
    return learned_opt.get_architecture("sgdm")


def nothing() -> None:
    pass


signs = Method(truncated_es)
needy = Method(truncated_es, ("sigma", "patience"))
"""
ALL_OWN = "--task my_code:bowl --optimizer my_code:rule --estimator my_code:signs"
SMALL = (
    "--updates 1 --estimator.truncation 4 --estimator.particles 4 --evaluation.steps 4 --evaluation.seeds 1 "
    "--evaluation.learning-rates 1 --devices 1 --wandb disabled"
)


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, own_registry: None) -> Iterator[Path]:
    """The current folder, with a user's module; its registrations are undone after the test."""
    (tmp_path / "my_code.py").write_text(MY_CODE)
    (tmp_path / "my_data.py").write_text("import jax.numpy as jnp\n\ntarget = jnp.float32(3.0)\n")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "meta_path", list(sys.meta_path))
    known, modules = dict(learned_opt.ARCHITECTURES), set(sys.modules)
    with against("adam"):
        yield tmp_path
    learned_opt.ARCHITECTURES.clear()
    learned_opt.ARCHITECTURES.update(known)
    for name in set(sys.modules) - modules:
        if name.partition(".")[0] == "gifts":
            del sys.modules[name]


def test_a_run_and_its_file(folder: Path) -> None:
    """Code named by the user is found and recorded; code named only by a file is not imported."""
    outcome = meta_train(ALL_OWN, SMALL, "--run-dir run")
    assert outcome.code == 0, outcome.err
    assert "run: my_code:bowl (T 6), my_code:signs (sigma " in outcome.err
    config = (folder / "run" / "config.yaml").read_text()
    assert "name: my_code:bowl" in config and "name: my_code:signs" in config
    assert "optimizer: my_code:rule" in config

    # As in a process in which it is not registered yet.
    del learned_opt.ARCHITECTURES["my_code:rule"]
    refused = "'my_code:rule', which is code outside this package and was not imported"
    for subcommand in ("inspect", "evaluate"):
        outcome = command.learned_opt(subcommand, "run")
        assert outcome.code == 2 and refused in outcome.err
    with pytest.raises(learned_opt.UserError, match=refused):
        learned_opt.load("run")
    import my_code

    tx = learned_opt.load("run", optimizer=my_code.rule())
    with pytest.raises(learned_opt.UserError, match="does not contain the weights"):
        learned_opt.load("run", optimizer=learned_opt.get_architecture("mlp"))

    outcome = command.learned_opt("inspect run --architectures my_code:rule")
    assert outcome.code == 0 and "my_code:rule" in outcome.out
    outcome = command.learned_opt(
        "evaluate run --architectures my_code:rule --tasks my_code:bowl --horizons 3 --seeds 1",
        "--learning-rates 1 --devices 1",
    )
    assert outcome.code == 0, outcome.err
    params = jnp.ones(3)
    updates = [each.update(params, each.init(params), params)[0] for each in (tx, learned_opt.load("run"))]
    np.testing.assert_array_equal(*updates)


def test_a_run_goes_on_where_the_command_names_its_code_again(folder: Path) -> None:
    outcome = meta_train(ALL_OWN, SMALL, "--run-dir run")
    assert outcome.code == 0, outcome.err
    outcome = meta_train("--resume run", ALL_OWN)
    assert outcome.code == 0 and "run is finished" in outcome.err
    flags = ALL_OWN.split()
    for missing in range(0, len(flags), 2):
        outcome = meta_train("--resume run", *flags[:missing], *flags[missing + 2 :])
        assert outcome.code == 2 and outcome.err.endswith(f"add {' '.join(flags[missing : missing + 2])}\n")


@pytest.mark.slow
def test_weights_to_start_from(folder: Path) -> None:
    theta = learned_opt.get_architecture("my_code:rule").init_theta(jax.random.key(0), 1)
    learned_opt.save("weights", "my_code:rule", theta, {})
    del learned_opt.ARCHITECTURES["my_code:rule"]
    outcome = meta_train(SMALL, "--start-from weights")
    assert outcome.code == 2 and "code outside this package" in outcome.err
    outcome = meta_train(
        SMALL, "--task my_code:bowl --start-from weights --optimizer my_code:rule --run-dir run"
    )
    assert outcome.code == 0, outcome.err


@pytest.mark.parametrize(
    ("flags", "says"),
    [
        ("--optimizer my_code:missing", "optimizer 'my_code:missing': the module 'my_code' has no 'missing'"),
        ("--optimizer my_code:signs", "is not a function that returns a LearnedOptimizer"),
        ("--optimizer my_code:nothing", "is not a function that returns a LearnedOptimizer"),
        ("--optimizer my_module:rule", "optimizer 'my_module:rule': module 'my_module' cannot be imported"),
        ("--optimizer :mlp", "optimizer ':mlp': module '' cannot be imported"),
        ("--estimator my_code:rule", "estimator 'my_code:rule' is not a Method"),
        ("--estimator my_code:needy", "the estimator 'my_code:needy' takes a setting 'patience'"),
        ("--estimator my_code:signs --estimator.analytic", "is a setting of pes, and not of my_code:signs"),
    ],
)
def test_what_is_not_there_is_said(folder: Path, flags: str, says: str) -> None:
    outcome = meta_train(flags)
    assert outcome.code == 2 and says in outcome.err
    assert outcome.err.count("\n") == 1 and not (folder / "runs").exists()


def test_meta_training_in_a_thread(tiny_run: Run, no_comparing: None, tmp_path: Path) -> None:
    """It ends with the same bits, although only the main thread can handle signals."""
    outcomes = []

    def run() -> None:
        flags = "--updates 3 --checkpoint-every 2 --devices 2"
        outcomes.append(meta_train(TINY, flags, "--run-dir", tmp_path / "run"))

    thread = threading.Thread(target=run)
    thread.start()
    thread.join()
    assert outcomes[0].code == 0, outcomes[0].err
    assert (tmp_path / "run" / "optimizer.safetensors").read_bytes() == tiny_run.optimizer


# The commands as installed for users, in a folder with files of any name.

OURS = ["checkpoints", "inner_tasks", "learned_opt", "meta_train"]
OTHERS = ["sklearn", "yaml", "tyro", "numpy", "wandb", "tensorflow"]
TRAP = 'open({executed!r}, "a").write(f"{{__name__}} ")\nraise SystemExit(9)\n'


def installed(
    *argv: object, cwd: Path, blocking: str = "", **environment: str
) -> subprocess.CompletedProcess[str]:
    """Run a command as installed; the packages named in `blocking` cannot be imported."""
    name, *arguments = words(*argv)
    script = Path(sysconfig.get_path("scripts")) / name
    program = BLOCKED.format(names=blocking.split()) + AS_PROGRAM
    line = [sys.executable, "-c", program, script, *arguments]
    outer = {k: v for k, v in os.environ.items() if k != "PYTHONPATH"}
    return subprocess.run(
        line if blocking else [script, *arguments],
        env=outer | environment,
        cwd=cwd,
        capture_output=True,
        text=True,
        timeout=300,
    )


BLOCKED = """
import sys

class Blocked:
    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] in {names}:
            raise ModuleNotFoundError(f"No module named '{{name}}'", name=name)

sys.meta_path.insert(0, Blocked())
"""
AS_PROGRAM = """
import runpy

del sys.path[0], sys.argv[0]
runpy.run_path(sys.argv[0], run_name="__main__")
"""


@pytest.fixture
def traps(tmp_path: Path) -> Path:
    """A folder with files named like packages, and a JAX plugin; each writes `executed` when imported."""
    trap = TRAP.format(executed=str(tmp_path / "executed"))
    work = tmp_path / "work"
    (work / "jax_plugins" / "trap").mkdir(parents=True)
    (work / "jax_plugins" / "trap" / "__init__.py").write_text(trap)
    for name in OURS + OTHERS:
        (work / f"{name}.py").write_text(trap)
    return work


def executed(folder: Path) -> str:
    file = folder.parent / "executed"
    return file.read_text() if file.exists() else ""


def test_the_traps_work(traps: Path) -> None:
    done = subprocess.run([sys.executable, "-m", "meta_train"], cwd=traps, capture_output=True)
    assert done.returncode == 9 and executed(traps) == "__main__ "


@pytest.mark.parametrize(
    ("argv", "code"),
    [
        slow("meta-train --updates 0", 2),
        slow("learned-opt inspect adam-small-tasks", 0),
        slow("pes-paper list", 0),
        # In a watched child process.
        ("meta-train --updates 0 --coordinator 127.0.0.1:1 --processes 1 --process-id 0", 2),
    ],
)
def test_commands_beside_files_of_any_name(argv: str, code: int, traps: Path) -> None:
    done = installed(argv, cwd=traps)
    assert (done.returncode, executed(traps)) == (code, ""), done.stderr
    assert ("--updates is 0; it must be at least 1" in done.stderr) == (code == 2)


@pytest.mark.slow
def test_a_run_beside_files_of_any_name(traps: Path) -> None:
    """On digits and without W&B, it imports no package that only other runs need."""
    done = installed("meta-train --optimizer sgdm", SMALL, cwd=traps, PYTHONPROFILEIMPORTTIME="1")
    assert (done.returncode, executed(traps)) == (0, ""), done.stderr
    imported = set(re.findall(r"^import time:.*\| +(\w+)$", done.stderr, re.MULTILINE))
    assert {"orbax", "sklearn", "matplotlib"} < imported
    assert not imported & {"wandb", "tensorflow_datasets", "array_record", "requests", "mujoco"}


@pytest.mark.slow
def test_python_m_beside_files_of_any_name(traps: Path) -> None:
    """With all traps except `meta_train.py`, which Python would rightly run."""
    (traps / "meta_train.py").unlink()
    line = [sys.executable, "-m", "meta_train", "--updates", "0"]
    done = subprocess.run(line, cwd=traps, capture_output=True, text=True)
    assert (done.returncode, executed(traps)) == (2, ""), done.stderr
    assert done.stderr.startswith("meta-train: --updates is 0")


@pytest.mark.slow
def test_the_folder_of_ones_own_code_is_searched_last(traps: Path) -> None:
    """Installed packages come before its files."""
    (traps / "my_code.py").write_text(MY_CODE)
    (traps / "my_data.py").write_text("target = 3.0\n")
    for absent in ("tensorflow.py", "jax_plugins/trap/__init__.py"):
        (traps / absent).unlink()
    done = installed("meta-train", ALL_OWN, SMALL, cwd=traps)
    assert (done.returncode, executed(traps)) == (0, ""), done.stderr


@pytest.mark.slow
def test_a_run_imports_only_what_it_needs(folder: Path) -> None:
    """Without W&B and with a task without a download, a run needs neither W&B nor TFDS."""
    absent = "wandb tensorflow_datasets array_record mujoco requests"
    done = installed("meta-train", ALL_OWN, SMALL, cwd=folder, blocking=absent)
    assert done.returncode == 0, done.stderr


@pytest.mark.parametrize(
    ("argv", "code"), [slow("meta-train --updates 0", 2), ("learned-opt inspect weights", 0)]
)
def test_what_is_quick_imports_nothing_heavy(argv: str, code: int, tmp_path: Path) -> None:
    theta = learned_opt.get_architecture("sgdm").init_theta(jax.random.key(0), 1)
    learned_opt.save(tmp_path / "weights", "sgdm", theta, {})
    heavy = "orbax tensorstore sklearn matplotlib wandb tensorflow_datasets array_record requests PIL"
    done = installed(argv, blocking=heavy, cwd=tmp_path)
    assert done.returncode == code, done.stderr


@pytest.mark.parametrize(
    ("argv", "missing"),
    [
        slow("meta-train", "tyro"),
        slow("learned-opt inspect adam-small-tasks", "tyro"),
        slow("pes-paper list", "matplotlib"),
        slow(f"meta-train {TINY}", "orbax"),
        (f"meta-train {TINY}", "sklearn"),
        slow(f"meta-train {TINY} --task mnist-mlp --data-dir nowhere", "requests"),
    ],
)
def test_a_package_that_is_missing_is_said_with_its_extra(argv: str, missing: str, tmp_path: Path) -> None:
    done = installed(argv, blocking=missing, cwd=tmp_path)
    assert done.returncode == 2, done.stderr
    said = done.stderr.splitlines()[-1]
    assert said.startswith(f"{argv.split()[0]}: a package is missing (No module named '{missing}"), said
    assert "the extra 'train': pip install" in said
    assert "Traceback" not in done.stderr


def test_an_optimizer_is_used_with_the_core_alone() -> None:
    """`learned_opt` imports only what the package requires without extras."""
    names = "orbax tensorflow_datasets array_record wandb sklearn tyro matplotlib requests PIL"
    program = "import learned_opt; learned_opt.pretrained('adam-small-tasks')"
    script = f"{BLOCKED.format(names=names.split())}\n{program}"
    done = subprocess.run([sys.executable, "-c", script], cwd=command.ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
