"""Settings of all tests: four CPU devices, a cache of compiled programs, and no W&B account."""

from __future__ import annotations

import fcntl
import os
import pickle
import shutil
import signal
import sys
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any
from unittest import mock

# Equal bits are guaranteed on a CPU only. Processes started by tests inherit the environment.
os.environ.setdefault("JAX_PLATFORMS", "cpu")
_session = tempfile.TemporaryDirectory(prefix="learned-opt-tests-")
# Most of the tests' time is compile time, so programs are optimized little and cached.
os.environ.setdefault("JAX_DISABLE_MOST_OPTIMIZATIONS", "1")
os.environ.setdefault("JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS", "0")
os.environ.setdefault("JAX_PERSISTENT_CACHE_MIN_ENTRY_SIZE_BYTES", "0")
os.environ.setdefault("LEARNED_OPT_CACHE", f"{_session.name}/data")
os.environ["NETRC"] = f"{_session.name}/netrc"  # no such file, so nobody is logged in to W&B
for _name in [name for name in os.environ if name.startswith("WANDB_")]:
    del os.environ[_name]

# A shell starts background jobs with SIGINT ignored, and processes started by tests would inherit that.
if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
    signal.signal(signal.SIGINT, signal.default_int_handler)

import jax  # noqa: E402  (reads the environment when it is imported)
import pytest  # noqa: E402

from inner_tasks import task  # noqa: E402
from meta_train.report.evaluation import MEAN_LOSS  # noqa: E402
from tests.meta_train.command import TINY, TINY_RIVALS, Run, against, meta_train, without_comparing  # noqa: E402

MAX_KEPT = 2**30  # bytes of cached programs

jax.config.update("jax_num_cpu_devices", 4)
jax.devices()  # initialised now, so that no test changes their number


def pytest_configure(config: pytest.Config) -> None:
    """Cache compiled programs between test runs of all clones."""
    if "JAX_COMPILATION_CACHE_DIR" not in os.environ:  # xdist's workers inherit it from their controller
        folder = Path(os.environ.get("XDG_CACHE_HOME") or "~/.cache").expanduser() / "learned-opt-tests"
        folder.mkdir(parents=True, exist_ok=True)
        if sum(file.stat().st_size for file in folder.iterdir()) > MAX_KEPT:
            shutil.rmtree(folder, ignore_errors=True)
        os.environ["JAX_COMPILATION_CACHE_DIR"] = str(folder)
    jax.config.update("jax_compilation_cache_dir", os.environ["JAX_COMPILATION_CACHE_DIR"])


def pytest_unconfigure() -> None:
    _session.cleanup()


@pytest.fixture(scope="module", autouse=True)
def forget_programs() -> Iterator[None]:
    """Drop each module's compiled programs, because all of them exceed Linux's limit on memory maps."""
    yield
    jax.clear_caches()


@pytest.fixture
def optimized() -> Iterator[None]:
    """Compile programs with full optimization, as for users; for tests of bits, memory or speed."""
    jax.clear_caches()
    before = jax.config.read("jax_disable_most_optimizations")
    jax.config.update("jax_disable_most_optimizations", False)
    with mock.patch.dict(os.environ, JAX_DISABLE_MOST_OPTIMIZATIONS="0"):
        yield
    jax.config.update("jax_disable_most_optimizations", before)
    jax.clear_caches()


@pytest.fixture
def own_registry(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Undo the registrations of tasks in a test, and its imports of modules called ``my_...``."""
    modules = set(sys.modules)
    monkeypatch.setattr(task, "_REGISTRY", dict(task._REGISTRY))
    yield
    for name in set(sys.modules) - modules:
        if name.startswith("my_"):
            del sys.modules[name]


# ``once(name, make)`` returns the run that ``make(folder)`` makes.
Once = Callable[[str, Callable[[Path], Run]], Run]


@pytest.fixture(scope="session")
def once(tmp_path_factory: pytest.TempPathFactory, worker_id: str) -> Once:
    """Make a run in one of xdist's workers, for all of them."""
    base = tmp_path_factory.getbasetemp()
    base = base if worker_id == "master" else base.parent

    def once(name: str, make: Callable[[Path], Run]) -> Run:
        kept = base / f"{name}.pickle"
        with (base / f"{name}.lock").open("w") as lock:
            fcntl.flock(lock, fcntl.LOCK_EX)
            if not kept.exists():
                shutil.rmtree(base / name, ignore_errors=True)
                made = make(base / name)
                # A criterion contains a function, which cannot be pickled.
                made = made._replace(comparison=made.comparison._replace(criterion=None))
                kept.write_bytes(pickle.dumps(made))
        run = pickle.loads(kept.read_bytes())
        return run._replace(comparison=run.comparison._replace(criterion=MEAN_LOSS))

    return once


@pytest.fixture(scope="session")
def tiny_run(once: Once) -> Run:
    """Three updates on two devices, and a real comparison with two rivals. Tests must not modify it."""
    from meta_train.run.learning import compare

    def make(path: Path) -> Run:
        comparisons = []

        def keep(*args: Any, **kwargs: Any) -> Any:
            comparisons.append(compare(*args, **kwargs))
            return comparisons[0]

        with (
            mock.patch("meta_train.run.learning.compare", keep),
            mock.patch("meta_train.report.costs.ROUNDS", 1),
            against(*TINY_RIVALS),
        ):
            outcome = meta_train(TINY, "--updates 3 --checkpoint-every 2 --devices 2", "--run-dir", path)
        assert outcome.code == 0, outcome.err
        return Run(path, outcome, comparisons[0])

    return once("tiny", make)


@pytest.fixture
def no_comparing(tiny_run: Run) -> Iterator[None]:
    """Make runs in this process reuse the comparison of ``tiny_run``."""
    with without_comparing(tiny_run.comparison):
        yield


@pytest.fixture(scope="session")
def fifty_updates(once: Once, tiny_run: Run) -> Run:
    """Fifty updates on two devices, uninterrupted. Tests must not modify it."""

    def make(path: Path) -> Run:
        with without_comparing(tiny_run.comparison):
            outcome = meta_train(TINY, "--updates 50 --checkpoint-every 20 --devices 2", "--run-dir", path)
        assert outcome.code == 0, outcome.err
        return Run(path, outcome, tiny_run.comparison)

    return once("fifty", make)
