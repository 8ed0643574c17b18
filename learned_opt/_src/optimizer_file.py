"""The optimizer file: the weights and all metadata needed to rebuild the optimizer, in safetensors format.

The file has one metadata key, ``learned_opt``, whose value is canonical JSON (sorted keys, no spaces).
It is a pure function of theta and of the configuration and result of meta-training: equal runs give
equal files. Reading a file executes nothing from it.
"""

from __future__ import annotations

import hashlib
import json
import math
import os
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
import safetensors
from flax.traverse_util import flatten_dict, unflatten_dict
from safetensors.numpy import save as to_safetensors

from learned_opt._src.architectures import ARCHITECTURES, get_architecture
from learned_opt._src.errors import UserError, printable
from learned_opt._src.files import write_whole
from learned_opt._src.learned_optimizer import LearnedOptimizer, Theta
from learned_opt._src.optax_transformation import as_optax

FORMAT_VERSION = 1
METADATA_KEY = "learned_opt"
FILE_NAME = "optimizer.safetensors"
# Weights are a few megabytes at most. A file with more bytes than this is not read at all.
MAX_BYTES = 2**30
# A description lists up to this many weights: they are hyperparameters rather than weights of a network.
FEW_WEIGHTS = 64
# Characters of one claim in a description, and the number of claims.
CLAIM_LENGTH = 2000
MAX_CLAIMS = 100


class Artifact(NamedTuple):
    """The content of an optimizer file."""

    architecture: str  # name in learned_opt.ARCHITECTURES, or module:name
    theta: Theta  # nested dict of float32 arrays
    metadata: dict[str, Any]  # format_version, architecture, feature_version, digest, licence, ...


class Description(NamedTuple):
    """An optimizer file for a reader: names and values, in order.

    Attributes:
      verified: facts that were checked when the file was read, because the weights show them.
      claimed: the model card, which anybody may have written into the file.
    """

    verified: dict[str, str]
    claimed: dict[str, str]


def save(
    path: str | os.PathLike[str],
    architecture: str,
    theta: Theta,
    meta_training: Mapping[str, Any],
    comparisons: Sequence[Mapping[str, Any]] = (),
) -> None:
    """Write an optimizer file atomically.

    Args:
      path: the file; an existing file is replaced.
      architecture: name of the optimizer, as in ``--optimizer``.
      theta: its weights, a nested dict of arrays; they are saved in float32.
      meta_training: how theta was learned, as JSON values; it must not contain anything that differs
        between equal runs (times, paths, hosts).
      comparisons: its results on tasks compared with tuned baselines, as JSON values; see
        docs/file-format.md.

    Raises:
      UserError: theta contains something other than real floating-point arrays.
      OSError: the file could not be written.
    """
    tensors = {k: _as_float32(k, v) for k, v in flatten_dict(theta, sep="/").items()}
    metadata = {
        "format_version": FORMAT_VERSION,
        "architecture": architecture,
        "feature_version": get_architecture(architecture).version,
        "digest": _digest(tensors),
        "licence": "MIT",
        "meta_training": meta_training,
        "comparisons": list(comparisons),
    }
    text = json.dumps(metadata, sort_keys=True, separators=(",", ":"), allow_nan=False)
    content = to_safetensors(dict(sorted(tensors.items())), metadata={METADATA_KEY: text})
    write_whole(Path(path), content)


def read(path: str | os.PathLike[str], optimizer: LearnedOptimizer | None = None) -> Artifact:
    """Read and check an optimizer file.

    Args:
      path: the file, or the folder of the run that wrote it.
      optimizer: the architecture of the weights; by default the one that the file names. That one must be
        known already: nothing is imported because a file names it.

    Raises:
      UserError: there is no such file; or it is damaged, not an optimizer file, of a newer format, or of an
        unknown architecture; or its weights do not fit `optimizer`.
    """
    path = Path(path)
    try:
        if path.is_dir():
            path = path / FILE_NAME
        if not path.is_file():
            raise UserError(
                f"there is no optimizer file at {path}; a finished run writes {FILE_NAME}, and "
                "learned_opt.pretrained_names() lists the optimizers that come with the package"
            )
        with path.open("rb"):
            size = path.stat().st_size
    except OSError as error:
        raise UserError(f"{path} cannot be read ({error.strerror})") from None
    if size > MAX_BYTES:
        raise UserError(f"{path} has {size:,} bytes, and an optimizer file has at most {MAX_BYTES:,}")
    try:
        with safetensors.safe_open(path, framework="numpy") as file:
            metadata = _metadata(path, file)
            read_version = _reader(path, metadata["format_version"])
            architecture, tensors = read_version(path, file, metadata, optimizer)
    except (safetensors.SafetensorError, OSError) as error:
        raise UserError(f"{path} is not a complete safetensors file ({error})") from None
    return Artifact(architecture, unflatten_dict(tensors, sep="/"), metadata)


def _metadata(path: Path, file: safetensors.safe_open) -> dict[str, Any]:
    """The metadata, which has a format version; nothing else is known about it."""
    try:
        metadata = json.loads((file.metadata() or {})[METADATA_KEY])
        metadata["format_version"]
    except (KeyError, TypeError, ValueError, RecursionError):
        raise UserError(f"{path} is a safetensors file, but not a learned-opt optimizer") from None
    return metadata


def _reader(path: Path, version: Any) -> Callable[..., tuple[str, dict[str, np.ndarray]]]:
    """The function that reads files of a format version."""
    if type(version) is int and version in _READERS:
        return _READERS[version]
    raise UserError(
        f"{path} has format version {printable(version)}, but this learned-opt reads "
        f"version {', '.join(map(str, _READERS))}; install the newest: pip install -U learned-opt"
    )


def _read_version_1(
    path: Path, file: safetensors.safe_open, metadata: Mapping[str, Any], optimizer: LearnedOptimizer | None
) -> tuple[str, dict[str, np.ndarray]]:
    """The architecture and the tensors by name, which are read only if the header has the expected shapes."""
    architecture, feature_version = metadata.get("architecture"), metadata.get("feature_version")
    if not isinstance(architecture, str) or (optimizer is None and architecture not in ARCHITECTURES):
        raise UserError(
            f"{path} contains an optimizer of architecture '{printable(architecture)}', "
            f"{_unknown(architecture)}"
        )
    optimizer = optimizer or get_architecture(architecture)
    if feature_version != optimizer.version:
        raise UserError(
            f"{path} was trained with version {printable(feature_version)} of the "
            f"'{printable(architecture)}' optimizer, but this learned-opt has version {optimizer.version}; "
            "use a learned-opt that has that version, or meta-train again"
        )
    slices = {name: file.get_slice(name) for name in file.keys()}  # noqa: SIM118
    found = {name: (tuple(each.get_shape()), each.get_dtype()) for name, each in slices.items()}
    # In a rule with hyperparameters for each block, the length of each array is the number of blocks.
    blocks = max((shape[0] for shape, _ in found.values() if len(shape) == 1), default=1)
    # The key is made inside: made here it would start JAX, and fix the number of its devices.
    shapes = jax.eval_shape(lambda: optimizer.init_theta(jax.random.key(0), blocks))
    expected = {name: (w.shape, "F32") for name, w in flatten_dict(shapes, sep="/").items()}
    if found != expected:
        raise UserError(f"{path} does not contain the weights of the '{printable(architecture)}' optimizer")
    tensors = {name: file.get_tensor(name) for name in slices}
    if metadata.get("digest") != _digest(tensors):
        raise UserError(f"{path} is damaged: its weights do not match the digest in its metadata")
    return architecture, tensors


# By format version. A file of an older version is read for ever.
_READERS = {1: _read_version_1}


def _unknown(architecture: Any) -> str:
    """The end of a message about an unknown architecture."""
    if isinstance(architecture, str) and ":" in architecture:
        return (
            "which is code outside this package and was not imported; if you trust it, name it yourself: "
            f"learned_opt.load(path, optimizer=learned_opt.get_architecture('{printable(architecture)}')), "
            "learned-opt --architectures, or meta-train --optimizer"
        )
    return f"but this learned-opt knows only: {', '.join(ARCHITECTURES)}"


def load(
    path: str | os.PathLike[str],
    learning_rate: optax.ScalarOrSchedule | None = None,
    *,
    optimizer: LearnedOptimizer | None = None,
    scale: optax.ScalarOrSchedule = 1.0,
    weight_decay: jax.typing.ArrayLike = 0.0,
    mask: Any = None,
    layer_axes: Any = None,
    num_steps: int | None = None,
) -> optax.GradientTransformationExtraArgs:
    """Load a learned optimizer, to be used in place of ``optax.adam(1e-3)``.

    Args:
      path: an optimizer file, or the folder of the run that wrote it.
      learning_rate, scale, weight_decay, mask, layer_axes, num_steps: as for ``learned_opt.as_optax``.
      optimizer: the architecture of the file, if it is one of your own: ``my_rules.momentum()``.

    Returns:
      An optax transformation; see ``learned_opt.as_optax``.

    Raises:
      UserError: the file is missing, damaged, not an optimizer file, or newer than this package; or a
        learning rate is given for an optimizer that takes none.

    Example::

        tx = learned_opt.load("runs/digits-mlp-1")
        state = tx.init(params)
        updates, state = tx.update(gradients, state, params)
        params = optax.apply_updates(params, updates)
    """
    artifact = read(path, optimizer)
    return as_optax(
        optimizer or get_architecture(artifact.architecture),
        artifact.theta,
        learning_rate,
        scale=scale,
        weight_decay=weight_decay,
        mask=mask,
        layer_axes=layer_axes,
        num_steps=num_steps,
    )


def describe(artifact: Artifact) -> Description:
    """What an optimizer file holds, and what its model card says, as printable text."""
    weights = sum(math.prod(w.shape) for w in jax.tree.leaves(artifact.theta))
    metadata = artifact.metadata
    verified = {
        "architecture": artifact.architecture,
        "weights": f"{weights:,}",
        "format": f"version {metadata['format_version']}",
        "features": f"version {metadata['feature_version']}",
        "digest": metadata["digest"],
    }
    if weights <= FEW_WEIGHTS:
        verified |= {
            name: ", ".join(f"{value:.4g}" for value in np.ravel(values))
            for name, values in flatten_dict(artifact.theta, sep="/").items()
        }
    summary, comparisons = metadata.get("meta_training"), metadata.get("comparisons")
    claimed: dict[str, Any] = {"licence": metadata.get("licence", "not given")}
    claimed |= summary if isinstance(summary, dict) else {}
    claimed |= {
        f"comparison {number}": _compared(each)
        for number, each in enumerate(comparisons if isinstance(comparisons, list) else (), 1)
    }
    texts = {name: v if isinstance(v, str) else json.dumps(v) for name, v in claimed.items()}
    return Description(
        {name: printable(value) for name, value in verified.items()},
        {printable(name): printable(texts[name], CLAIM_LENGTH) for name in list(texts)[:MAX_CLAIMS]},
    )


def _compared(comparison: Any) -> str:
    """One comparison as a sentence; as JSON if it is not in the format of this package."""
    try:
        own, tuned = comparison["own"], comparison["tuned"]
        adam = tuned["adam"]
        # Files older than these two keys were ranked by mean loss and compared with Adam alone.
        key, best = comparison.get("ranked_by", "mean_loss"), comparison.get("best", "adam")
        ratio = own.get("ratio_to_best", own["ratio_to_adam"])
        return (
            f"{comparison['task']}, {comparison['steps']} steps, {comparison['seeds']} seeds: "
            f"{key.replace('_', ' ')} {own[key]:.4g}; {best}, the best tuned optimizer, "
            f"{tuned[best][key]:.4g}, ratio {ratio:.3f}; Adam at its best learning rate "
            f"({adam['learning_rate']:.1e}) {adam[key]:.4g}, ratio {own['ratio_to_adam']:.3f}"
        )
    except (AttributeError, KeyError, OverflowError, TypeError, ValueError):
        return json.dumps(comparison)


def _as_float32(name: str, weights: Any) -> np.ndarray:
    dtype = jnp.result_type(weights)
    if not jnp.issubdtype(dtype, jnp.floating):
        raise UserError(
            f"weights '{name}' have dtype {dtype}, but an optimizer file contains real numbers, in float32"
        )
    return np.asarray(weights, np.float32, order="C")  # safetensors writes them as they lie in memory


def _digest(tensors: Mapping[str, np.ndarray]) -> str:
    """SHA-256 over names, dtypes, shapes and values, in order of name."""
    sha = hashlib.sha256()
    for name in sorted(tensors):
        tensor = tensors[name]
        sha.update(f"{name} {tensor.dtype} {tensor.shape} ".encode())
        sha.update(np.ascontiguousarray(tensor).tobytes())
    return "sha256:" + sha.hexdigest()
