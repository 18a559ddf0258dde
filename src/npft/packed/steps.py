"""Launching ``cuda/decode.cu``: what a Llama-like decoder does between its matrix products."""

from __future__ import annotations

import ctypes
from collections.abc import Sequence

import torch
from torch import Tensor

from npft.packed import nvrtc
from npft.packed.nvrtc import Kernel


class _Norm(ctypes.Structure):
    _fields_ = (
        *((name, ctypes.c_void_p) for name in ("residual", "delta", "weight", "out")),
        ("width", ctypes.c_int),
        ("epsilon", ctypes.c_float),
    )


class _Attend(ctypes.Structure):
    _fields_ = (
        *((name, ctypes.c_void_p) for name in ("q", "k", "v", "cosine", "sine")),
        *((name, ctypes.c_void_p) for name in ("k_cache", "v_cache", "out", "position")),
        ("group", ctypes.c_int),
        ("limit", ctypes.c_int),
        ("scale", ctypes.c_float),
    )


class _Gate(ctypes.Structure):
    _fields_ = (
        *((name, ctypes.c_void_p) for name in ("gate", "up", "out")),
        ("width", ctypes.c_int),
    )


class _Embed(ctypes.Structure):
    _fields_ = (
        *((name, ctypes.c_void_p) for name in ("table", "token", "residual")),
        ("width", ctypes.c_int),
    )


def rms_norm(
    residual: Tensor, delta: Tensor | None, weight: Tensor, out: Tensor, epsilon: float
) -> None:
    """``residual += delta``, in place, and ``out = residual / rms(residual) * weight``."""
    width = residual.numel()
    added = None if delta is None else delta.data_ptr()
    arguments = _Norm(residual.data_ptr(), added, weight.data_ptr(), out.data_ptr(), width, epsilon)
    kernel = _kernel("rms_norm", residual, f"-DWIDTH={width}")
    kernel.launch(arguments, (1,), 1024, 128, overlap=True)


def attend(
    qkv: Sequence[Tensor],
    rotary: tuple[Tensor, Tensor],
    caches: tuple[Tensor, Tensor],
    out: Tensor,
    position: Tensor,
    head: int,
) -> None:
    """Rotate queries and key, put key and value into the caches, and attend to all rows so far.

    Args:
        qkv: ``(heads * head,)`` queries, then ``(kv heads * head,)`` key and value.
        rotary: cosines and sines ``(limit, head / 2)``, float32.
        caches: of keys and values, ``(kv heads, limit, head)``.
        out: ``(heads * head,)``.
        position: int32, the rows in the caches before this one.
        head: values per head: a multiple of 8 up to 256 whose eighth divides 32.
    """
    q, k, v = qkv
    heads, kv_heads, limit = q.numel() // head, k.numel() // head, caches[0].shape[1]
    arguments = _Attend(
        *(t.data_ptr() for t in (q, k, v, *rotary, *caches, out, position)),
        heads // kv_heads,
        limit,
        head**-0.5,
    )
    teams = 512 // (head // 8)
    floats = head + head // 2 + teams * head + max(limit, teams)
    kernel = _kernel("attend", q, f"-DHEAD={head}")
    kernel.launch(arguments, (heads,), 512, 4 * floats, overlap=True)


def gate(gated: Tensor, up: Tensor, out: Tensor) -> None:
    """``out = silu(gated) * up``, all ``(width,)``."""
    width = out.numel()
    arguments = _Gate(gated.data_ptr(), up.data_ptr(), out.data_ptr(), width)
    _kernel("gate", out).launch(arguments, (-(-width // 256),), 256, overlap=True)


def embed(table: Tensor, token: Tensor, residual: Tensor) -> None:
    """``residual (width,) = table[token]``, for an int64 token."""
    width = residual.numel()
    arguments = _Embed(table.data_ptr(), token.data_ptr(), residual.data_ptr(), width)
    _kernel("embed", residual).launch(arguments, (-(-width // 256),), 256, overlap=True)


def _kernel(name: str, like: Tensor, *options: str) -> Kernel:
    chosen = (*options, "-DBF16") if like.dtype == torch.bfloat16 else options
    return nvrtc.kernel("decode.cu", name, chosen, like.device.index or 0)
