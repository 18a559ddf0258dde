"""Text to token windows, for calibration and for evaluation."""

from __future__ import annotations

import codecs
import json
from collections.abc import Iterable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from npft.errors import NpftError, abridged, in_one_line
from npft.seeding import generator

BUILTIN = "builtin"

HUB_CHARACTERS = 16_000_000
"""How much of a hub data set is read: some 4 million tokens, from its beginning."""


def load_text(source: str, split: str = "calibration") -> list[str]:
    """Documents of a text source.

    Args:
        source: ``builtin``; a ``.jsonl`` file with a ``text`` field per line; a ``.txt`` file; or
            a hub data set id as ``ID[:CONFIG[:SPLIT]]``, of which the first
            :data:`HUB_CHARACTERS` are streamed.
        split: which part of the built-in text, ``calibration`` or ``held-back``; the two share
            no paragraph.

    Raises:
        NpftError: the source is missing, empty, binary, not UTF-8, or not of that form.
    """
    if source == BUILTIN:
        return _builtin(split)
    try:
        path = Path(source).expanduser()
        there = path.exists()
    except (OSError, RuntimeError) as error:
        raise NpftError(
            f"text {source[:80]!r} cannot be looked up as a path ({in_one_line(error)}): check it"
        ) from error
    if path.suffix.lower() == ".jsonl":
        return _jsonl(path)
    if path.suffix.lower() == ".txt":
        return [_read(path)]
    if there or source.startswith((".", "/", "~")):
        fault = "is neither a .jsonl nor a .txt file" if there else "is not there"
        raise NpftError(f"text {source!r} {fault}: give a .jsonl or .txt file, or a hub id")
    return _hub(source)


def windows(tokenizer: Any, documents: list[str], context: int, source: str = "text") -> Tensor:
    """Cut documents, joined by blank lines, into whole windows of tokens.

    Returns:
        ``(n, context)`` int64 token ids; what is left over at the end is dropped.

    Raises:
        NpftError: there is not one whole window.
    """
    text = "\n\n".join(documents)
    # A tokenizer of the tokenizers library caches words per thread and does not free them with
    # itself (0.23), so the thread must go.
    with ThreadPoolExecutor(1) as pool:
        encoded = pool.submit(tokenizer, text, verbose=False).result()
    tokens = torch.tensor(encoded["input_ids"], dtype=torch.int64)
    whole = tokens.numel() // context
    if whole == 0:
        raise NpftError(
            f"text {source!r} has {tokens.numel()} tokens, too few for one window of {context}: "
            "give more text or a smaller --context"
        )
    return tokens[: whole * context].view(whole, context)


def check_vocabulary(tokens: Tensor, vocabulary: int, source: str = "text") -> None:
    """Raises NpftError where a token id has no row in the model's embedding."""
    highest = int(tokens.max())
    if highest >= vocabulary:
        raise NpftError(
            f"text {source!r} has token {highest}, beyond the model's vocabulary of {vocabulary}: "
            "the tokenizer does not belong to this model"
        )


def choose(all_windows: Tensor, samples: int, seed: int) -> Tensor:
    """``samples`` windows at random without repetition, or all if there are fewer."""
    order = torch.randperm(len(all_windows), generator=generator(seed, "calibration windows"))
    return all_windows[order[:samples].sort().values]


def batches(all_windows: Tensor, size: int, device: torch.device | str) -> Iterator[Tensor]:
    """``(<= size, context)`` batches on ``device``, in order."""
    for part in all_windows.split(size):
        yield part.to(device)


def _builtin(split: str) -> list[str]:
    """Prose of the Python documentation, out of the standard library."""
    from pydoc_data.topics import topics

    return split_topics(topics, held_back=split == "held-back")


def split_topics(topics: Mapping[str, str], *, held_back: bool) -> list[str]:
    """One of two parts of some topics: every fourth, in alphabetical order, is held back.

    Topics repeat paragraphs, so each paragraph is kept once, where it first appears.
    """
    seen: set[str] = set()
    documents = []
    for index, name in enumerate(sorted(topics)):
        fresh = []
        for paragraph in topics[name].split("\n\n"):
            words = " ".join(paragraph.split())
            if words and words not in seen:
                seen.add(words)
                fresh.append(paragraph.strip("\n"))
        if fresh and (index % 4 == 3) == held_back:
            documents.append("\n\n".join(fresh))
    return documents


def _read(path: Path) -> str:
    """UTF-8 text with ``\\n`` line ends, whatever the file's, and without a byte order mark."""
    try:
        raw = path.read_bytes()
    except FileNotFoundError as error:
        raise NpftError(f"text {str(path)!r} is not there: check the path") from error
    except (OSError, ValueError) as error:
        raise NpftError(
            f"text {str(path)!r} cannot be read ({in_one_line(error)}): give a text file"
        ) from error
    if raw.startswith((codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE)):
        raise NpftError(f"text {str(path)!r} is UTF-16: convert it to UTF-8")
    if b"\0" in raw:
        raise NpftError(f"text {str(path)!r} is a binary file: give plain UTF-8 text")
    try:
        text = raw.removeprefix(codecs.BOM_UTF8).decode("utf-8")
    except UnicodeDecodeError as error:
        raise NpftError(
            f"text {str(path)!r} is not UTF-8 (byte {error.start}): convert it to UTF-8"
        ) from error
    if not text.strip():
        raise NpftError(f"text {str(path)!r} is empty: give a file with text in it")
    return text.replace("\r\n", "\n").replace("\r", "\n")


def _jsonl(path: Path) -> list[str]:
    documents = []
    for number, line in enumerate(_read(path).split("\n"), start=1):
        if line.strip():
            documents.append(_document(line, f"text {str(path)!r}, line {number},"))
    if not any(document.strip() for document in documents):
        raise NpftError(f"text {str(path)!r} is empty: every 'text' field in it is blank")
    return documents


def _document(line: str, where: str) -> str:
    try:
        row = json.loads(line)
    except (ValueError, RecursionError) as error:
        raise NpftError(
            f"{where} is not JSON ({in_one_line(error)}): put one object with a 'text' field on "
            "each line"
        ) from error
    if not isinstance(row, dict):
        raise NpftError(f"{where} is not a JSON object: each line needs a 'text' field")
    if "text" not in row:
        names = abridged(", ".join(map(repr, row)), 200) or "none"
        raise NpftError(f"{where} has no 'text' field, its fields are {names}: rename one")
    text = row["text"]
    if not isinstance(text, str):
        kind = type(text).__name__
        raise NpftError(f"{where} has a 'text' field that is a {kind}: make it a string")
    if any("\ud800" <= character <= "\udfff" for character in text):
        raise NpftError(f"{where} has half of a surrogate pair, which is no text: remove it")
    return text


def _hub(source: str) -> list[str]:
    try:
        import datasets
    except ImportError as error:
        raise NpftError(
            f"text {source!r} is no file here, and hub data sets need the 'datasets' package: "
            "pip install 'npft[hub]', or check the path"
        ) from error
    name, _, rest = source.partition(":")
    config, _, split = rest.partition(":")
    try:
        rows = datasets.load_dataset(name, config or None, split=split or "train", streaming=True)
        return list(_up_to(HUB_CHARACTERS, (row["text"] for row in rows)))
    except KeyError as error:
        raise NpftError(f"hub data set {source!r} has no 'text' column: give another") from error
    except Exception as error:
        raise NpftError(
            f"text {source!r} is no file here and cannot be loaded from the hub "
            f"({in_one_line(error)}): check the name, or give a file"
        ) from error


def _up_to(characters: int, texts: Iterable[str | None]) -> Iterator[str]:
    """The first texts, skipping missing ones, until they have that many characters."""
    total = 0
    for text in texts:
        if text:
            yield text
            total += len(text)
        if total >= characters:
            return
