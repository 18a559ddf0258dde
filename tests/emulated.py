"""npft's CUDA kernels compiled for the CPU by a C++ compiler, with the launcher's own interface."""

from __future__ import annotations

import ctypes
import functools
import hashlib
import shutil
import subprocess
import tempfile
from pathlib import Path

import pytest

from npft.packed import nvrtc

COMPILER = shutil.which("g++") or shutil.which("clang++")

needs_compiler = pytest.mark.skipif(
    COMPILER is None, reason="a C++ compiler runs the GPU kernels on the CPU, and there is none"
)

ARGUMENTS = {
    "gemv": "Arguments",
    "dequantize": "Arguments",
    "rms_norm": "NormArguments",
    "attend": "AttendArguments",
    "gate": "GateArguments",
    "embed": "EmbedArguments",
}


class EmulatedKernel:
    """Stands where :class:`npft.packed.nvrtc.Kernel` does."""

    def __init__(self, library: ctypes.CDLL) -> None:
        self._library = library

    def launch(self, arguments, blocks, threads, shared_bytes=0, *, overlap=False) -> None:
        width, height = (*blocks, 1)[:2]
        status = self._library.run(width, height, threads, shared_bytes, ctypes.byref(arguments))
        assert status == 0, "the kernel wrote beyond its shared memory"


@functools.cache
def folder() -> Path:
    return Path(tempfile.mkdtemp(prefix="npft-emulated-"))


@functools.cache
def kernel(file: str, name: str, options: tuple[str, ...], device: int) -> EmulatedKernel:
    """A replacement for :func:`npft.packed.nvrtc.kernel`."""
    text = (
        f'#include "{Path(__file__).parent / "emulator.h"}"\n{nvrtc.source(file)}\n'
        f'extern "C" int run(int width, int height, int size, int used, const {ARGUMENTS[name]}* a)'
        f"{{ return launch(width, height, size, used, [=] {{ {name}(*a); }}); }}\n"
    )
    base = folder() / hashlib.sha256(repr((text, options)).encode()).hexdigest()[:16]
    base.with_suffix(".cpp").write_text(text, encoding="utf-8")
    command = [COMPILER, "-O1", "-std=c++17", "-w", "-shared", "-fPIC", *options]
    output = ["-o", str(base.with_suffix(".so"))]
    subprocess.run([*command, str(base.with_suffix(".cpp")), *output], check=True, timeout=300)
    return EmulatedKernel(ctypes.CDLL(str(base.with_suffix(".so"))))
