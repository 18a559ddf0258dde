"""CUDA C++ compiled at first use by NVRTC, kept on disk, and launched through the driver.

NVRTC comes with torch's CUDA builds, so there is nothing to compile at installation. Compiled
kernels lie in ``$XDG_CACHE_HOME/npft`` (``~/.cache/npft``), named by a hash of their source,
options and NVRTC's version.
"""

from __future__ import annotations

import ctypes
import hashlib
import os
import tempfile
from collections.abc import Sequence
from functools import cache
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import torch

from npft.errors import NpftError

SOURCES = Path(__file__).parent / "cuda"

_MAX_DYNAMIC_SHARED = 8  # CU_FUNC_ATTRIBUTE_MAX_DYNAMIC_SHARED_SIZE_BYTES
_SHARED_CARVEOUT = 9  # CU_FUNC_ATTRIBUTE_PREFERRED_SHARED_MEMORY_CARVEOUT, in percent
_PROGRAMMATIC_SERIALIZATION = 6  # CU_LAUNCH_ATTRIBUTE_PROGRAMMATIC_STREAM_SERIALIZATION


class _Attribute(ctypes.Structure):
    """CUlaunchAttribute: an id, and a union of 64 bytes of which we use an int."""

    _fields_ = (
        ("id", ctypes.c_int),
        ("padding", ctypes.c_char * 4),
        ("value", ctypes.c_int),
        ("rest", ctypes.c_char * 60),
    )


class _Config(ctypes.Structure):
    """CUlaunchConfig."""

    _fields_ = (
        ("grid", ctypes.c_uint * 3),
        ("block", ctypes.c_uint * 3),
        ("shared_bytes", ctypes.c_uint),
        ("stream", ctypes.c_void_p),
        ("attributes", ctypes.POINTER(_Attribute)),
        ("attribute_count", ctypes.c_uint),
    )


class Kernel:
    """One compiled kernel on one device, which takes one struct by value."""

    def __init__(self, image: bytes, name: str) -> None:
        self._module, self._function = ctypes.c_void_p(), ctypes.c_void_p()
        _check(_driver().cuModuleLoadData(ctypes.byref(self._module), image))
        _check(
            _driver().cuModuleGetFunction(ctypes.byref(self._function), self._module, name.encode())
        )
        # Kernels that overlap must agree on how the L1 cache is divided.
        _check(_driver().cuFuncSetAttribute(self._function, _SHARED_CARVEOUT, 100))
        self._shared_bytes = 48 << 10
        attribute = _Attribute(_PROGRAMMATIC_SERIALIZATION, b"", 1, b"")
        self._attributes = (_Attribute * 1)(attribute)

    def launch(
        self,
        arguments: ctypes.Structure,
        blocks: Sequence[int],
        threads: int,
        shared_bytes: int = 0,
        *,
        overlap: bool = False,
    ) -> None:
        """Put a launch onto torch's current stream.

        Args:
            arguments: the kernel's one parameter.
            blocks: up to three dimensions of the grid.
            threads: threads of a block.
            shared_bytes: dynamic shared memory.
            overlap: let it begin while the launch before it ends: only for a kernel that waits
                (griddepcontrol.wait) before it reads what others write.
        """
        if shared_bytes > self._shared_bytes:
            _check(_driver().cuFuncSetAttribute(self._function, _MAX_DYNAMIC_SHARED, shared_bytes))
            self._shared_bytes = shared_bytes
        config = _Config(
            (*blocks, *(1,) * (3 - len(blocks))),
            (threads, 1, 1),
            shared_bytes,
            torch.cuda.current_stream().cuda_stream,
            self._attributes,
            int(overlap),
        )
        pointers = (ctypes.c_void_p * 1)(ctypes.addressof(arguments))
        _check(_driver().cuLaunchKernelEx(ctypes.byref(config), self._function, pointers, None))


@cache
def kernel(file: str, name: str, options: tuple[str, ...], device: int) -> Kernel:
    """The kernel ``name`` of ``cuda/FILE``, compiled with macros ``options`` for CUDA ``device``.

    Raises:
        NpftError: NVRTC is missing or refuses the source.
    """
    with torch.cuda.device(device):
        torch.cuda.current_stream().synchronize()  # makes the device's context current
        major, minor = torch.cuda.get_device_capability(device)
        return Kernel(image(file, options, f"sm_{major}{minor}"), name)


def source(file: str) -> str:
    """The text that is compiled for ``cuda/FILE``: the common headers, then the file."""
    parts = ("primitives.cuh", "codes.cuh", file)
    return "\n".join((SOURCES / part).read_text(encoding="utf-8") for part in parts)


def compile_source(text: str, options: Sequence[str], architecture: str) -> bytes:
    """Machine code of CUDA C++ ``text``.

    Raises:
        NpftError: NVRTC is missing, or what it says of the source.
    """
    library = _nvrtc()
    program = ctypes.c_void_p()
    library.nvrtcCreateProgram(ctypes.byref(program), text.encode(), b"npft.cu", 0, None, None)
    flags = [f"--gpu-architecture={architecture}", "--std=c++17", *options]
    encoded = (ctypes.c_char_p * len(flags))(*(flag.encode() for flag in flags))
    if library.nvrtcCompileProgram(program, len(flags), encoded):
        log = _output(program, library.nvrtcGetProgramLogSize, library.nvrtcGetProgramLog)
        said = " ".join(log.decode(errors="replace").split())[:300]
        raise NpftError(f"NVRTC cannot compile npft's kernels for {architecture}: {said}")
    image = _output(program, library.nvrtcGetCUBINSize, library.nvrtcGetCUBIN)
    library.nvrtcDestroyProgram(ctypes.byref(program))
    return image


def _output(program: ctypes.c_void_p, size_of: Any, get: Any) -> bytes:
    size = ctypes.c_size_t()
    size_of(program, ctypes.byref(size))
    buffer = ctypes.create_string_buffer(size.value)
    get(program, buffer)
    return buffer.raw


def image(file: str, options: tuple[str, ...], architecture: str) -> bytes:
    """Machine code of ``cuda/FILE`` for an architecture such as ``sm_90``, kept on disk."""
    text = source(file)
    version = ctypes.c_int(), ctypes.c_int()
    _nvrtc().nvrtcVersion(*map(ctypes.byref, version))
    identity = repr((text, options, architecture, [part.value for part in version]))
    kept = _cache() / f"{hashlib.sha256(identity.encode()).hexdigest()}.cubin"
    if kept.is_file():
        return kept.read_bytes()
    image = compile_source(text, options, architecture)
    try:
        kept.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.NamedTemporaryFile(dir=kept.parent, delete=False) as draft:
            draft.write(image)
        os.replace(draft.name, kept)
    except OSError:
        pass  # a cache that cannot be written costs a second of compiling each time, no more
    return image


def _cache() -> Path:
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "npft"


@cache
def _driver() -> ctypes.CDLL:
    return ctypes.CDLL("libcuda.so.1")


@cache
def _nvrtc() -> ctypes.CDLL:
    major = (torch.version.cuda or "13").split(".")[0]
    name = f"libnvrtc.so.{major}"
    package = find_spec("nvidia")
    places = list(package.submodule_search_locations or []) if package is not None else []
    found = [str(file) for place in places for file in sorted(Path(place).glob(f"*/lib/{name}"))]
    for candidate in (*found, name):
        try:
            return ctypes.CDLL(candidate)
        except OSError:
            continue
    raise NpftError(
        f"npft's GPU kernels need NVRTC ({name}), which torch's CUDA builds bring along: install "
        f"one of these, or pip install nvidia-cuda-nvrtc"
    )


def _check(status: int) -> None:
    if status:
        text = ctypes.c_char_p()
        _driver().cuGetErrorString(status, ctypes.byref(text))
        raise RuntimeError(f"CUDA driver error {status}: {(text.value or b'unknown').decode()}")
