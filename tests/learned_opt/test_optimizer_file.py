"""The optimizer file: complete, stable, and otherwise refused with one message."""

from __future__ import annotations

import hashlib
import json
import os
import resource
import struct
import subprocess
import sys
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from safetensors.numpy import save_file

import learned_opt
from tests.learned_opt.plain import RULES

ROOT = Path(learned_opt.__file__).parents[1]
OPTIMIZER = learned_opt.get_architecture("mlp")
VERSION_1 = "bbda14522c30d4ec956c8ced82119aee43323c6391812a3c58bab2d875ff8004"
THETA = OPTIMIZER.init_theta(jax.random.key(0), 1)
SUMMARY = {"task": "digits-mlp", "updates": 3, "final_meta_loss": 0.25}


@pytest.fixture
def path(tmp_path):
    learned_opt.save(tmp_path / "optimizer.safetensors", "mlp", THETA, SUMMARY)
    return tmp_path / "optimizer.safetensors"


def rewrite_metadata(path, **changes):
    """Change some of the metadata of a file, as if another program had written it."""
    artifact = learned_opt.read(path)
    tensors = {
        f"{layer}/{name}": np.asarray(w)
        for layer, weights in artifact.theta.items()
        for name, w in weights.items()
    }
    save_file(tensors, path, metadata={"learned_opt": json.dumps(artifact.metadata | changes)})


def test_round_trip(path):
    artifact = learned_opt.read(path)
    assert artifact.architecture == "mlp"
    assert artifact.metadata["meta_training"] == SUMMARY
    assert artifact.metadata["format_version"] == 1
    jax.tree.map(np.testing.assert_array_equal, artifact.theta, jax.tree.map(np.asarray, THETA))


@pytest.mark.parametrize("as_folder", [False, True])
def test_loaded_optimizer_gives_the_same_updates(path, as_folder):
    tx = learned_opt.load(path.parent if as_folder else str(path))
    assert isinstance(tx, optax.GradientTransformationExtraArgs)
    p = {"w": jnp.arange(12.0).reshape(3, 4)}
    expected, _ = jax.jit(OPTIMIZER.update)(THETA, p, OPTIMIZER.init(p), p)
    found, _ = tx.update(p, tx.init(p), p)
    np.testing.assert_array_equal(found["w"], expected["w"])


def test_header_is_one_canonical_json_key(path):
    content = path.read_bytes()
    (length,) = struct.unpack("<Q", content[:8])
    metadata = json.loads(content[8 : 8 + length])["__metadata__"]
    assert list(metadata) == ["learned_opt"]
    parsed = json.loads(metadata["learned_opt"])
    assert metadata["learned_opt"] == json.dumps(parsed, sort_keys=True, separators=(",", ":"))


def test_equal_content_gives_equal_bytes_in_other_processes(path, tmp_path):
    code = (
        "import jax, learned_opt, sys; "
        "theta = learned_opt.get_architecture('mlp').init_theta(jax.random.key(0), 1); "
        f"learned_opt.save(sys.argv[1], 'mlp', theta, dict(reversed({SUMMARY!r}.items())))"
    )
    for name in ("a", "b"):
        subprocess.run([sys.executable, "-c", code, tmp_path / name], check=True)
    assert path.read_bytes() == (tmp_path / "a").read_bytes() == (tmp_path / "b").read_bytes()


def test_a_name_that_is_too_long():
    with pytest.raises(learned_opt.UserError, match="cannot be read|there is no optimizer file"):
        learned_opt.load("x" * 300)


def test_missing_file(tmp_path):
    with pytest.raises(learned_opt.UserError, match="no optimizer file at .*optimizer.safetensors"):
        learned_opt.load(tmp_path)


def test_foreign_safetensors_file(tmp_path):
    save_file({"x": np.zeros(3)}, tmp_path / "x.safetensors", metadata={"format": "pt"})
    with pytest.raises(learned_opt.UserError, match="not a learned-opt optimizer"):
        learned_opt.load(tmp_path / "x.safetensors")


def test_newer_format(path):
    rewrite_metadata(path, format_version=2)
    with pytest.raises(learned_opt.UserError, match="format version 2.*pip install -U"):
        learned_opt.load(path)


def test_other_features(path):
    rewrite_metadata(path, feature_version=99)
    with pytest.raises(learned_opt.UserError, match="version 99 of the 'mlp' optimizer"):
        learned_opt.load(path)


@pytest.mark.parametrize("name", ["nobody", None, ["mlp"]])
def test_unknown_architecture(path, name):
    rewrite_metadata(path, architecture=name)
    with pytest.raises(learned_opt.UserError, match="this learned-opt knows only: mlp"):
        learned_opt.load(path)


def test_wrong_digest(path):
    rewrite_metadata(path, digest="sha256:0")
    with pytest.raises(learned_opt.UserError, match="is damaged"):
        learned_opt.load(path)


@pytest.mark.parametrize("kept", [0, 4, 100, -1])
def test_truncated(path, kept):
    path.write_bytes(path.read_bytes()[:kept])
    with pytest.raises(learned_opt.UserError, match="not a complete safetensors file"):
        learned_opt.load(path)


def test_reading_a_file_does_not_start_jax():
    """Otherwise `--start-from` and `learned-opt evaluate` would have one device on any number of cores."""
    code = (
        "import jax, learned_opt; name = learned_opt.pretrained_names()[0];"
        "learned_opt.read(learned_opt.pretrained_path(name));"
        "jax.config.update('jax_num_cpu_devices', 3); assert jax.device_count() == 3"
    )
    subprocess.run([sys.executable, "-c", code], check=True)


@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")
@pytest.mark.parametrize("count", [500, pytest.param(10_000, marks=pytest.mark.slow)])
def test_mutated_files_load_to_the_same_or_fail_with_the_one_error(count):
    """Within 100 MB (the program limits itself) and a second of CPU time each."""
    command = [sys.executable, "-m", "tests.learned_opt.fuzz", str(count), "0"]
    environment = {**os.environ, "JAX_PLATFORMS": "cpu", "MALLOC_ARENA_MAX": "1"}
    done = subprocess.run(command, capture_output=True, text=True, cwd=ROOT, env=environment)
    assert done.returncode == 0, done.stderr[-2000:]
    found = json.loads(done.stdout)
    print(found)
    assert found["same"] + found["refused"] == count
    assert found["same"] > 0.01 * count  # changes of the model card, which no digest protects
    assert found["slowest"] < 1


def test_description(path):
    verified, claimed = learned_opt.describe(learned_opt.read(path))
    assert verified["architecture"] == "mlp"
    assert verified["weights"] == "1,762"
    assert claimed["task"] == "digits-mlp"


def test_what_a_file_claims_is_not_shown_as_verified(path):
    before = learned_opt.describe(learned_opt.read(path)).verified
    forged = {
        "architecture": "adam",
        "digest": "sha256:0",
        "weights": "7",
        "a\nformat": "\x1b[2J",
        "long": [1] * 10**5,
    }
    rewrite_metadata(path, meta_training=forged, licence="MIT\n   digest  sha256:1")
    verified, claimed = learned_opt.describe(learned_opt.read(path))
    assert verified == before
    assert claimed["digest"] == "sha256:0" and claimed["a\\nformat"] == "\\x1b[2J"
    assert all(text.isprintable() and len(text) < 2100 for line in claimed.items() for text in line)


@pytest.mark.parametrize(
    "changed", [{"own": []}, {"own": "x"}, {"ranked_by": None}, {"own": {"mean_loss": 10**400}}], ids=str
)
def test_a_comparison_in_another_form_is_shown_as_it_is(path, changed):
    known = {"mean_loss": 0.5, "ratio_to_adam": 1.0, "learning_rate": 0.1}
    comparison = {"task": "x", "steps": 1, "seeds": 1, "own": known, "tuned": {"adam": known}}
    rewrite_metadata(path, comparisons=[comparison | changed])
    assert '"tuned"' in learned_opt.describe(learned_opt.read(path)).claimed["comparison 1"]


def test_a_file_with_any_number_of_claims_has_a_short_description(path):
    rewrite_metadata(path, meta_training={str(i): i for i in range(10**5)})
    assert len(learned_opt.describe(learned_opt.read(path)).claimed) == 100


@pytest.mark.parametrize("value", ["\x1b]0;x\x07", "\u202e", [1] * 200_000, {"a": "\n"}, True, 1.0])
@pytest.mark.parametrize("key", ["format_version", "feature_version", "architecture"])
def test_what_a_message_quotes_from_a_file_is_printable_and_short(path, key, value):
    if key == "feature_version" and value == 1:
        return  # equal to the right version
    rewrite_metadata(path, **{key: value})
    with pytest.raises(learned_opt.UserError) as caught:
        learned_opt.read(path)
    assert str(caught.value).isprintable() and len(str(caught.value)) < 1000
    assert str(path) in str(caught.value)


def test_sizes_are_checked_before_weights_are_read(path, tmp_path):
    """The file is sparse: reading its weights would take 800 MB."""
    metadata = learned_opt.read(path).metadata
    tensor = {"dtype": "F32", "shape": [2 * 10**8], "data_offsets": [0, 8 * 10**8]}
    huge = write_sparse(tmp_path / "huge", {"Dense_0/bias": tensor}, metadata, 8 * 10**8)
    began = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    with pytest.raises(learned_opt.UserError, match="does not contain the weights of the 'mlp' optimizer"):
        learned_opt.read(huge)
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - began < 100_000  # kB
    tensor |= {"shape": [10**10], "data_offsets": [0, 4 * 10**10]}
    with pytest.raises(learned_opt.UserError, match="has 40,000,.* bytes, and an optimizer file has at most"):
        learned_opt.read(write_sparse(huge, {"Dense_0/bias": tensor}, metadata, 4 * 10**10))


def write_sparse(path, tensors, metadata, size):
    """Write the header of a safetensors file, and `size` zeros that take no space on the disk."""
    header = json.dumps({"__metadata__": {"learned_opt": json.dumps(metadata)}, **tensors}).encode()
    with path.open("wb") as file:
        file.write(struct.pack("<Q", len(header)) + header)
        file.truncate(8 + len(header) + size)
    return path


def test_hyperparameters_are_described_one_by_one(tmp_path):
    theta = learned_opt.get_architecture("sgdm-per-block").init_theta(jax.random.key(0), 2)
    theta["momentum"] = jnp.array([0.5, -0.25])
    learned_opt.save(tmp_path / "file", "sgdm-per-block", theta, {})
    verified, _ = learned_opt.describe(learned_opt.read(tmp_path / "file"))
    assert verified["momentum"] == "0.5, -0.25" and verified["log_power"] == "-1, -1"


@pytest.mark.parametrize("name", ["celo2-style", "sgdm-per-block"])
def test_other_architectures_in_a_file(tmp_path, name):
    """Nested weights, a learning rate of the user, hyperparameters for each of three tensors."""
    optimizer = learned_opt.get_architecture(name)
    theta = optimizer.init_theta(jax.random.key(0), 3)
    learned_opt.save(tmp_path / "file", name, theta, {})
    jax.tree.map(np.testing.assert_array_equal, learned_opt.read(tmp_path / "file").theta, theta)
    params = {"a": jnp.ones((2, 3)), "b": jnp.ones(3), "c": jnp.float32(1)}

    def moved(tx):
        return tx.update(params, tx.init(params), params)[0]

    own = moved(learned_opt.load(tmp_path / "file"))
    if optimizer.unit_rate is None:
        with pytest.raises(learned_opt.UserError, match="takes no learning rate"):
            learned_opt.load(tmp_path / "file", learning_rate=0.1)
    else:
        unit = moved(learned_opt.load(tmp_path / "file", learning_rate=1.0))
        expected = jax.tree.map(lambda u: jnp.exp(theta["log_learning_rate"]) * u, unit)
        jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-5), own, expected)


def test_a_file_of_version_1_is_read_for_ever():
    """The file must not be regenerated. Its updates are those of the plain formula."""
    path = Path(__file__).parent / "data" / "version-1-mlp.safetensors"
    assert hashlib.sha256(path.read_bytes()).hexdigest() == VERSION_1
    artifact, tx = learned_opt.read(path), learned_opt.load(path)
    assert artifact.metadata["meta_training"]["task"]["name"] == "digits-mlp"
    param, gradient = np.linspace(-1, 1, 30).reshape(5, 6), np.cos(np.arange(30.0)).reshape(5, 6)
    update, _ = tx.update(jnp.float32(gradient), tx.init(jnp.float32(param)), jnp.float32(param))
    theta = jax.tree.map(lambda w: np.asarray(w, np.float64), artifact.theta)
    expected = RULES["mlp"](theta, [gradient], param, 0)
    assert np.linalg.norm(update - expected) < 1e-4 * np.linalg.norm(expected)


@pytest.mark.parametrize("dtype", ["bfloat16", "float16", "float64"])
def test_theta_of_any_real_dtype_is_saved_as_what_loads_again(tmp_path, dtype):
    theta = jax.tree.map(lambda w: np.asarray(w).astype(jnp.dtype(dtype)), THETA)
    learned_opt.save(tmp_path / "file", "mlp", theta, {})
    found = learned_opt.read(tmp_path / "file").theta
    jax.tree.map(lambda a, b: np.testing.assert_array_equal(a, np.asarray(b, np.float32)), found, theta)


def test_theta_may_lie_in_any_order_in_memory(tmp_path):
    learned_opt.save(tmp_path / "file", "mlp", jax.tree.map(np.asfortranarray, THETA), {})
    jax.tree.map(np.testing.assert_array_equal, learned_opt.read(tmp_path / "file").theta, THETA)


def test_theta_that_is_not_real_is_refused(tmp_path):
    theta = jax.tree.map(lambda w: np.asarray(w).astype(np.int32), THETA)
    with pytest.raises(learned_opt.UserError, match="have dtype int32"):
        learned_opt.save(tmp_path / "file", "mlp", theta, {})
    assert not (tmp_path / "file").exists()
