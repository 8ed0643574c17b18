"""What every test stands on: four CPU devices, programs compiled once, and nobody's home or account."""

from __future__ import annotations

import os
import tempfile
from typing import Any
from unittest import mock

# Bits are promised on a CPU. The environment also reaches the processes that tests start.
os.environ.setdefault("JAX_PLATFORMS", "cpu")
_session = tempfile.TemporaryDirectory(prefix="learned-opt-tests-")
# Compiling is most of what a small run costs, and many tests run the same programs.
os.environ.setdefault("JAX_COMPILATION_CACHE_DIR", f"{_session.name}/compiled")
os.environ.setdefault("JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS", "0")
os.environ.setdefault("JAX_PERSISTENT_CACHE_MIN_ENTRY_SIZE_BYTES", "0")
os.environ.setdefault("LEARNED_OPT_CACHE", f"{_session.name}/data")
os.environ["NETRC"] = f"{_session.name}/netrc"  # no such file: nobody is logged in to W&B
for _name in [name for name in os.environ if name.startswith("WANDB_")]:
    del os.environ[_name]

import jax  # noqa: E402  (reads the environment when it is imported)
import pytest  # noqa: E402

from tests.meta_train.command import TINY, Run, meta_train, without_comparing  # noqa: E402

jax.config.update("jax_num_cpu_devices", 4)
jax.devices()  # started now, so that no test gets another number


def pytest_unconfigure() -> None:
    _session.cleanup()


@pytest.fixture(scope="module", autouse=True)
def forget_programs() -> Any:
    """Drop each module's compiled programs: all together need more memory maps than Linux gives a process."""
    yield
    jax.clear_caches()


@pytest.fixture(scope="session")
def tiny_run(tmp_path_factory: pytest.TempPathFactory) -> Run:
    """Three updates on two devices, and a real comparison. Not to be changed."""
    from meta_train.run.run import compare

    path = tmp_path_factory.mktemp("tiny") / "run"
    comparisons = []

    def keep(*args: Any, **kwargs: Any) -> Any:
        comparisons.append(compare(*args, **kwargs))
        return comparisons[0]

    with mock.patch("meta_train.run.run.compare", keep):
        outcome = meta_train(TINY, "--updates 3 --checkpoint-every 2 --devices 2", "--run-dir", path)
    assert outcome.code == 0, outcome.err
    return Run(path, outcome, *comparisons)


@pytest.fixture
def no_comparing(tiny_run: Run) -> Any:
    """Runs in this process end with the comparison of ``tiny_run``."""
    with without_comparing(tiny_run.comparison):
        yield


@pytest.fixture(scope="session")
def fifty_updates(tiny_run: Run, tmp_path_factory: pytest.TempPathFactory) -> Run:
    """Fifty updates on two devices, uninterrupted. Not to be changed."""
    path = tmp_path_factory.mktemp("fifty") / "run"
    with without_comparing(tiny_run.comparison):
        outcome = meta_train(TINY, "--updates 50 --checkpoint-every 20 --devices 2", "--run-dir", path)
    assert outcome.code == 0, outcome.err
    return Run(path, outcome, tiny_run.comparison)
