"""Damages valid files: by bytes, by structure and by tensor.

All chance comes from a ``random.Random``, whose seed is what hypothesis draws: one number stands
for an input of 100 kB, and no two are the same.
"""

from __future__ import annotations

import copy
import json
import math
import tomllib
from collections.abc import Mapping, Sequence
from random import Random
from typing import Any

import tomli_w
import torch
from safetensors.torch import load, save
from torch import Tensor

Files = dict[str, bytes | None]
"""What lies over a valid folder, by relative path; None for a file that is taken away."""

SIZES = (0, 1, 2, 7, 8, 255, 2**15, 2**16, 2**20, 2**28, 2**31 - 1, 2**31, 2**32, 2**40, 2**63 - 1)
NUMBERS = (*SIZES, 2**64 - 1, 2**64, 10**30, -1, -(2**31), -(2**63), 0.5, 1e308, -1e-300)
WORDS = (
    "", " ", "a", "a" * 5000, "\0", "\x1b[31m\x07", "é🦙\u202e", "\ud800", "[red]x[/red]", "[/b]",
    "<script>alert(1)</script>", "</svg>&\"'", "../../../etc/passwd", "/etc/passwd", "~", "NaN",
    "none", "float", "rtn", "kmeans", "npft", "gptq", "awq", "kl", "uniform", "codebook", "power",
    "gpt2", "bert", "t5", "mamba", "llama", "mixtral", "float16", "int8", "x\ny", "%s{0}{x}", "$a$",
    "$\\x{$",
)  # fmt: skip
DEEP = "@deep@"
"""Stands for nesting that no serializer writes."""

PLAIN = (None, True, False, [], {}, [[]], {"a": 1}, [1, "a"], DEEP, math.nan, math.inf)


def atom(random: Random) -> Any:
    """Something small that may be of the wrong type, too large or no text."""
    kind = random.randrange(6)
    if kind == 0:
        return copy.deepcopy(random.choice(PLAIN))
    if kind == 1:
        return random.choice(NUMBERS)
    if kind == 2:
        return random.choice(WORDS)
    if kind == 3:
        return random.randint(-3, 300)
    if kind == 4:
        return random.uniform(-2, 2) * 10 ** random.randint(-9, 9)
    return "".join(chr(random.randrange(0x3000)) for _ in range(random.randrange(8)))


def damaged_bytes(random: Random, valid: bytes, places: Sequence[int] = ()) -> bytes:
    """One to three edits: bits flipped, cut, put in, doubled, or a huge number written over.

    Most of the edits are at one of ``places``, if there are any.
    """
    data = bytearray(valid)
    for _ in range(random.randint(1, 3)):
        at = random.randrange(max(len(data), 1))
        if places and random.random() < 0.7:
            at = random.choice(places)
        kind = random.choice(["flip", "number", "cut", "drop", "put", "double", "words"])
        end = at + random.randint(1, 16)
        if kind == "flip" and data:
            data[min(at, len(data) - 1)] ^= random.randint(1, 255)
        elif kind == "number":
            width = random.choice([4, 8])
            value = random.choice([*SIZES, 2**64 - 1])
            data[at : at + width] = (value % 2 ** (8 * width)).to_bytes(width, "little")
        elif kind == "cut":
            del data[at:]
        elif kind == "drop":
            del data[at:end]
        elif kind == "put":
            data[at:at] = random.randbytes(random.randint(1, 12))
        elif kind == "double":
            data[at:at] = data[at:end] * random.choice([1, 2, 1000])
        elif kind == "words":
            data[at:end] = random.choice(WORDS).encode("utf-8", "surrogatepass")
    return bytes(data)


def damaged_tree(random: Random, valid: Any) -> Any:
    """A tree of dicts and lists with one to three of its nodes replaced, dropped or renamed."""
    tree = copy.deepcopy(valid)
    for _ in range(random.randint(1, 3)):
        places = list(_places(tree))
        if not places:
            return atom(random)
        around, key = random.choice(places)
        kind = random.choice(["set", "set", "set", "drop", "rename", "copy", "grow"])
        if kind == "set":
            around[key] = atom(random)
        elif kind == "drop":
            del around[key]
        elif kind == "rename" and isinstance(around, dict):
            around[str(random.choice(WORDS))] = around.pop(key)
        elif kind == "copy":
            around[key] = copy.deepcopy(random.choice(places)[0])
        elif kind == "grow" and isinstance(around, list):
            around.extend(around[:1] * random.choice([1, 50, 3000]))
    return atom(random) if random.randint(0, 40) == 0 else tree


def _places(tree: Any) -> Any:
    keys = tree if isinstance(tree, dict) else range(len(tree)) if isinstance(tree, list) else ()
    for key in list(keys)[:200]:
        yield tree, key
        yield from _places(tree[key])


def damaged_json(random: Random, valid: bytes) -> bytes:
    """JSON damaged in its structure or its bytes; keys may be there twice, lists be deep."""
    if random.randint(0, 4) == 0:
        return damaged_bytes(random, valid)
    text = json.dumps(damaged_tree(random, json.loads(valid)))
    depth = random.choice([3, 200, 100_000])
    text = text.replace(f'"{DEEP}"', "[" * depth + "]" * depth)
    if text.startswith("{") and random.randint(0, 9) == 0:
        text = text[:-1] + "," + text[1:]
    return text.encode("utf-8", "surrogatepass")


def damaged_toml(random: Random, valid: bytes) -> bytes:
    """TOML damaged in its structure or its bytes."""
    if random.randint(0, 3) == 0:
        return damaged_bytes(random, valid)
    tree = damaged_tree(random, tomllib.loads(valid.decode()))
    try:
        text = tomli_w.dumps(tree if isinstance(tree, dict) else {"a": tree})
    except (TypeError, AttributeError, ValueError):  # None has no place in TOML
        return damaged_bytes(random, valid)
    depth = random.choice([3, 200, 30_000])
    text = text.replace(f'"{DEEP}"', "[" * depth + "]" * depth)
    return text.encode("utf-8", "surrogatepass")


def damaged_tensors(random: Random, valid: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Tensors of another shape, type or content, dropped, renamed or put in."""
    tensors = dict(valid)
    for _ in range(random.randint(1, 3)):
        if not tensors:
            break
        name = random.choice(sorted(tensors))
        change = random.choice(["values", "values", "shape", "type", "drop", "name", "put"])
        if change == "drop":
            del tensors[name]
        elif change == "name":
            tensors[random.choice([*sorted(valid), "x", name + ".y"])] = tensors.pop(name)
        elif change == "put":
            tensors[random.choice(["x", "", name + ".z", "\0"])] = torch.ones(2)
        else:
            damage = {"values": _values, "shape": _shape, "type": _type}[change]
            tensors[name] = damage(random, tensors[name]).contiguous().clone()
    return tensors


def _values(random: Random, tensor: Tensor) -> Tensor:
    """Some or all values replaced by extreme ones."""
    tensor = tensor.clone()
    if tensor.dtype.is_floating_point:
        value = random.choice([math.nan, math.inf, -math.inf, 0.0, -1.0, 6e4, 1e-8])
    elif tensor.dtype == torch.bool or not tensor.numel():
        return tensor
    else:
        value = random.choice([0, 1, 5, 16, 127, 255, -1, 2**31 - 1, -(2**31), 2**16])
        limits = torch.iinfo(tensor.dtype)
        value = min(max(value, limits.min), limits.max)
    flat = tensor.reshape(-1)
    if random.random() < 0.5:
        return tensor.fill_(value)
    for _ in range(random.randint(1, 3)):
        if flat.numel():
            flat[random.randint(0, flat.numel() - 1)] = value
    return tensor


def _shape(random: Random, tensor: Tensor) -> Tensor:
    kinds = ["cut", "flat", "more", "turned", "empty", "scalar", "wide", "twice"]
    kind = random.choice(kinds)
    if kind == "cut" and tensor.dim():
        along = random.randint(0, tensor.dim() - 1)
        return tensor.narrow(along, 0, random.randint(0, tensor.shape[along]))
    if kind == "turned":
        return tensor.transpose(0, -1) if tensor.dim() else tensor
    changed = {
        "flat": lambda: tensor.reshape(-1),
        "more": lambda: tensor.unsqueeze(0),
        "empty": lambda: tensor.reshape(-1)[:0],
        "scalar": lambda: tensor.new_zeros(()),
        "wide": lambda: tensor.new_zeros(1, 4096),
        "twice": lambda: torch.cat([tensor, tensor]) if tensor.dim() else tensor,
    }
    return changed.get(kind, lambda: tensor)()


def _type(random: Random, tensor: Tensor) -> Tensor:
    kinds = [
        torch.float32, torch.float16, torch.bfloat16, torch.float64, torch.uint8, torch.int8,
        torch.int16, torch.int32, torch.int64, torch.bool,
    ]  # fmt: skip
    return tensor.to(random.choice(kinds))


def damaged_safetensors(random: Random, valid: bytes) -> bytes:
    """A safetensors file damaged by tensor, in its header or in its bytes."""
    kind = random.choice(["tensors", "tensors", "tensors", "header", "bytes"])
    size = int.from_bytes(valid[:8], "little")
    header = json.loads(valid[8 : 8 + size])
    if kind == "tensors":
        return save((damaged_tensors(random, load(valid))), header.get("__metadata__"))
    if kind == "bytes":
        return damaged_bytes(random, valid, range(8))
    text = damaged_json(random, valid[8 : 8 + size])
    return len(text).to_bytes(8, "little") + text + valid[8 + size :]


def damaged(random: Random, name: str, valid: bytes, places: Sequence[int] = ()) -> bytes:
    """Whichever of these fits the file's name."""
    if name.endswith(".json"):
        return damaged_json(random, valid)
    if name.endswith(".toml"):
        return damaged_toml(random, valid)
    if name.endswith(".safetensors"):
        return damaged_safetensors(random, valid)
    return damaged_bytes(random, valid, places)


def damaged_folder(random: Random, valid: Mapping[str, bytes], only: Sequence[str]) -> Files:
    """One or two files of a folder damaged, a few times one taken away."""
    files: Files = {}
    for _ in range(random.choice([1, 1, 1, 2])):
        name = random.choice(sorted(only))
        gone = random.randint(0, 60) == 0
        files[name] = None if gone else damaged(random, name, valid[name])
    return files
