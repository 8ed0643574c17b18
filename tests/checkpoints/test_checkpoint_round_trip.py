"""A restored state equals the saved one to the bit, for any leaf, container and number of devices."""

from __future__ import annotations

import os
import subprocess
import sys
import threading
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import ml_dtypes
import numpy as np
import optax
import pytest

from checkpoints import CheckpointStore
from learned_opt._src.errors import UserError


class Particle(NamedTuple):
    inner: Any
    position: Any


@jax.tree_util.register_dataclass
@dataclass
class Counters:
    done: Any
    lost: Any


DTYPES = [
    *("bool", "uint8", "int8", "int16", "uint32", "int32", "int64", "uint64"),
    *("float16", "float32", "float64", "complex64"),
    *(ml_dtypes.bfloat16, ml_dtypes.float8_e4m3fn, ml_dtypes.int4),
]


def whole_state(seed: int = 0) -> Any:
    """Every kind of leaf and container that a run state may have."""
    random = np.random.default_rng(seed)
    theta = {"w/x.y": jnp.asarray(random.standard_normal((3, 2)), jnp.bfloat16), "b": jnp.ones(2)}
    return {
        "theta": theta,
        "outer": optax.chain(optax.clip_by_global_norm(1.0), optax.adam(1e-3)).init(theta),
        "particles": [
            Particle(inner=(np.full((4, 1), i), [None, {}]), position=np.int64(i)) for i in range(2)
        ],
        "dtypes": tuple(random.integers(0, 2, (2, 3)).astype(dtype) for dtype in DTYPES),
        "dataclass": Counters(done=np.uint32(2**32 - 1), lost=jnp.zeros((0, 5))),
        "keys": (jax.random.split(jax.random.key(seed), 3), jax.random.key(1, impl="rbg")),
        "old key": jax.random.PRNGKey(seed),
        "scalars": (True, 3, 0.1, np.float32(0.1), np.bool_(False)),
        "special": np.array([np.nan, -0.0, np.inf, 5e-324]),
        "not contiguous": random.standard_normal((4, 6))[::2, ::3].T,
        "empty": optax.EmptyState(),
    }


def host(leaf: Any) -> np.ndarray:
    if hasattr(leaf, "dtype") and jnp.issubdtype(leaf.dtype, jax.dtypes.prng_key):
        leaf = jax.random.key_data(leaf)
    return np.asarray(leaf)


def assert_same_bits(restored: Any, saved: Any) -> None:
    assert jax.tree.structure(restored) == jax.tree.structure(saved)
    for new, old in zip(jax.tree.leaves(restored), jax.tree.leaves(saved), strict=True):
        assert host(new).dtype == host(old).dtype
        assert host(new).shape == host(old).shape
        assert host(new).tobytes() == host(old).tobytes()


def test_every_kind_of_leaf_and_container(tmp_path: Path) -> None:
    metadata = {"line": 12, "rate": 0.1, "nested": [None, {"text": "é"}]}
    state = whole_state()
    with CheckpointStore(tmp_path / "run" / "checkpoints") as store:
        store.save(7, state, metadata)
    with CheckpointStore(tmp_path / "run" / "checkpoints") as store:
        restored = store.restore(like=whole_state(seed=1))
    assert (restored.update, restored.metadata, restored.damaged) == (7, metadata, [])
    assert_same_bits(restored.state, state)
    for leaf in jax.tree.leaves(restored.state):
        assert isinstance(leaf, np.ndarray) or jnp.issubdtype(leaf.dtype, jax.dtypes.prng_key)
    # A typed key is restored with its implementation.
    for new, old in zip(restored.state["keys"], state["keys"], strict=True):
        assert new.dtype == old.dtype


@pytest.mark.parametrize("state", [{}, (), np.zeros((0, 3)), np.float32(2.5), jax.random.key(0)])
def test_smallest_states(tmp_path: Path, state: Any) -> None:
    with CheckpointStore(tmp_path) as store:
        store.save(0, state, {})
        assert_same_bits(store.restore(state).state, state)


def test_like_may_be_abstract(tmp_path: Path) -> None:
    def init(key: jax.Array) -> dict[str, Any]:
        return {"key": key, "x": jax.random.normal(key, (3,)), "t": jnp.int32(0)}

    state = init(jax.random.key(0))
    with CheckpointStore(tmp_path) as store:
        store.save(1, state, {})
        restored = store.restore(like=jax.eval_shape(init, jax.random.key(5)))
    assert_same_bits(restored.state, state)


def test_text_cannot_be_saved(tmp_path: Path) -> None:
    with CheckpointStore(tmp_path) as store:
        with pytest.raises(UserError, match=r"\['name'\] is a str"):
            store.save(1, {"name": "digits"}, {})
        assert store.updates() == []


def test_save_copies_before_it_returns(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The caller may overwrite and donate buffers before the background thread has started."""
    with CheckpointStore(tmp_path) as store:
        may_write = threading.Event()
        write = store._files.write

        def late_write(*args: Any) -> None:
            assert may_write.wait(60)
            write(*args)

        monkeypatch.setattr(store._files, "write", late_write)
        on_host = np.arange(1000.0)
        on_device = jnp.arange(1000.0)
        store.save(1, {"host": on_host, "device": on_device}, {})
        assert store.updates() == []  # save did not wait for the disk
        on_host += 1
        on_device = jax.jit(lambda x: x + 1, donate_argnums=0)(on_device)
        on_device.block_until_ready()
        may_write.set()
        store.wait()
        assert store.updates() == [1]
        restored = store.restore({"host": on_host, "device": on_device})
    np.testing.assert_array_equal(restored.state["host"], np.arange(1000))
    np.testing.assert_array_equal(restored.state["device"], np.arange(1000))


PASS_ON = """
import sys
import jax, numpy as np
from jax.sharding import NamedSharding, PartitionSpec
from checkpoints import CheckpointStore

folder, devices, update = sys.argv[1], int(sys.argv[2]), int(sys.argv[3])
assert jax.device_count() == devices
mesh = jax.make_mesh((devices,), ("particles",))
like = {"x": np.zeros((8, 3), np.float32), "key": jax.random.split(jax.random.key(0), 8)}
with CheckpointStore(folder) as store:
    state = store.restore(like).state
    state = jax.device_put(state, NamedSharding(mesh, PartitionSpec("particles")))
    assert len(state["x"].addressable_shards) == devices
    store.save(update, state, {})
"""


def test_any_number_of_devices(tmp_path: Path) -> None:
    x = np.random.default_rng(0).standard_normal((8, 3)).astype(np.float32)
    state = {"x": x, "key": jax.random.split(jax.random.key(3), 8)}
    with CheckpointStore(tmp_path) as store:
        store.save(0, state, {})
    for update, devices in enumerate((4, 1), start=1):
        flags = f"--xla_force_host_platform_device_count={devices}"
        environment = os.environ | {"XLA_FLAGS": flags, "JAX_PLATFORMS": "cpu"}
        command = [sys.executable, "-c", PASS_ON, str(tmp_path), str(devices), str(update)]
        subprocess.run(command, env=environment, check=True)
    with CheckpointStore(tmp_path) as store:
        assert store.updates() == [0, 1, 2]
        restored = store.restore(state)
    assert restored.update == 2
    assert_same_bits(restored.state, state)


def test_importing_checkpoints_does_not_import_orbax() -> None:
    code = "import sys, checkpoints; assert not [m for m in sys.modules if m.startswith('orbax')]"
    subprocess.run([sys.executable, "-c", code], check=True)
