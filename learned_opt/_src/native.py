"""Native kernels for CPUs, compiled when they are asked for, and kept in the user's cache folder."""

from __future__ import annotations

import ctypes
import functools
import hashlib
import os
import shutil
import subprocess
import tempfile
from pathlib import Path

import jax
import jaxlib

from learned_opt._src.cache import cache_folder
from learned_opt._src.errors import UserError, printable
from learned_opt._src.files import make_folder, write_whole

# The name of the kernel in programs of JAX, and in its source.
MOMENTUM_NETWORK = "learned_opt_momentum_network"
# The architectures that it is for.
NATIVE_ARCHITECTURES = ("mlp", "metz2019")

_SOURCE = Path(__file__).parent / "architectures" / "momentum_native.cpp"
_FLAGS = ("-std=c++17", "-O3", "-march=native", "-ffp-contract=fast", "-fPIC", "-shared")
_SECONDS = 300  # for the compiler


_in_use = False


def use_native_kernels(use: bool = True) -> None:
    """Run `mlp` and `metz2019` as a native kernel on CPUs, in all programs that are traced from now on.

    The kernel agrees with JAX's operations to rounding, not to the bit. On a processor with AVX-512 an update
    takes about half of the time. It runs on one core, in float32. Where an update is differentiated, for
    float64 parameters, and for tensors that are sharded over devices, JAX's operations run as before.

    The first call compiles the kernel, which takes seconds and needs a C++ compiler: the one that the
    environment variable ``CXX`` names, by default ``c++``. The result is kept in the user's cache folder, for
    this processor, compiler and version of jaxlib.

    Args:
      use: False to use JAX's operations again.

    Raises:
      UserError: there is no compiler, it fails, or the cache folder cannot be used or is open to others.

    Example::

        learned_opt.use_native_kernels()
        tx = learned_opt.load("optimizer.safetensors")
    """
    global _in_use
    if use:
        _register()
    _in_use = use


def in_use() -> bool:
    """Whether programs that are traced now use the kernel."""
    return _in_use


@functools.cache
def _register() -> None:
    """Compile the kernel, unless it was compiled before, load it, and make it known to JAX."""
    library = _library()
    try:
        handler = getattr(ctypes.CDLL(str(library)), MOMENTUM_NETWORK)
    except (OSError, AttributeError) as error:
        raise UserError(f"the native kernel {library} cannot be loaded ({error}); remove the file") from None
    jax.ffi.register_ffi_target(MOMENTUM_NETWORK, jax.ffi.pycapsule(handler), platform="cpu")


def _library() -> Path:
    """The file of the compiled kernel."""
    compiler = (os.environ.get("CXX") or "c++").split()
    if not (compiler and shutil.which(compiler[0])):
        raise UserError(
            f"a native kernel needs a C++ compiler, but {printable(' '.join(compiler))} was not found; "
            "install one (Debian, Ubuntu: apt install g++), set CXX to yours, or do without the kernel"
        )
    version = _run([*compiler, "--version"])
    parts = [_SOURCE.read_text(), *compiler, *_FLAGS, version, jaxlib.__version__, _processor()]
    key = hashlib.sha256("\0".join(parts).encode()).hexdigest()
    library = cache_folder() / "kernels" / f"momentum-{key[:32]}.so"
    try:
        if not library.is_file():
            make_folder(library.parent)
            library.parent.chmod(0o700)
            with tempfile.TemporaryDirectory() as folder:
                made = Path(folder) / library.name
                include = f"-I{jax.ffi.include_dir()}"
                _run([*compiler, *_FLAGS, include, str(_SOURCE), "-o", str(made)])
                write_whole(library, made.read_bytes())
                library.chmod(0o600)
        for path in (library, library.parent):
            _check_owner(path)
    except OSError as error:
        raise UserError(
            f"the native kernel cannot be kept in {library.parent} ({error.strerror or error}); set "
            "LEARNED_OPT_CACHE to a folder that can be written, or do without the kernel"
        ) from None
    return library


def _run(command: list[str]) -> str:
    """What a program of the compiler prints."""
    try:
        done = subprocess.run(command, capture_output=True, text=True, errors="replace", timeout=_SECONDS)
    except (OSError, subprocess.TimeoutExpired) as error:
        raise UserError(f"the C++ compiler {command[0]} cannot be run: {error}") from None
    if done.returncode:
        raise UserError(
            f"the C++ compiler {command[0]} could not compile the native kernel; set CXX to another one, or "
            f"do without the kernel. It says: {done.stderr.strip() or 'nothing'}"
        )
    return done.stdout


def _processor() -> str:
    """What the compiler may use of the processor: a file that was compiled for another one could crash."""
    lines = Path("/proc/cpuinfo").read_text().splitlines() if os.path.exists("/proc/cpuinfo") else []
    found = (line for line in lines if line.startswith(("flags", "Features")))
    return next(found, "unknown")


def _check_owner(path: Path) -> None:
    """Refuse a file or folder that other users could have written: it is about to be run."""
    status = path.stat()
    if status.st_uid not in (0, os.getuid()) or status.st_mode & 0o022:
        raise UserError(
            f"{path} can be written by other users, so the native kernel in it is not run; remove it, or set "
            "LEARNED_OPT_CACHE to a folder of your own"
        )
