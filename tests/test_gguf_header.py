"""GGUF headers that claim more than the file has are refused before anything is made of them."""

from __future__ import annotations

import struct
import time
from pathlib import Path

import pytest
from refusals import refusal
from tiny import tiny_model
from tiny_gguf import VOCABULARY, write_gguf

from npft import gguf_header, models
from npft.gguf_header import Malformed


@pytest.fixture(scope="module")
def valid(tmp_path_factory: pytest.TempPathFactory) -> bytes:
    network = tiny_model(vocab_size=len(VOCABULARY), num_hidden_layers=1).network
    return write_gguf(tmp_path_factory.mktemp("gguf") / "model.gguf", network).read_bytes()


@pytest.fixture
def file(valid: bytes, tmp_path: Path) -> Path:
    (tmp_path / "model.gguf").write_bytes(valid)
    return tmp_path / "model.gguf"


def refused(file: Path, content: bytes, *parts: str) -> None:
    file.write_bytes(content)
    start = time.perf_counter()
    refusal(lambda: models.load(str(file), device="cpu"), str(file), "get it again", *parts)
    assert time.perf_counter() - start < 20  # these took minutes, or for ever


def test_what_a_header_says(file: Path) -> None:
    network = tiny_model(vocab_size=len(VOCABULARY), num_hidden_layers=1).network
    found = gguf_header.read(file)
    assert found.blocks == 1
    assert found.elements == sum(parameter.numel() for parameter in network.parameters())
    assert found.numbers["embedding_length"] == network.config.hidden_size
    assert found.numbers["vocab_size"] == len(VOCABULARY)


@pytest.mark.parametrize(("at", "what"), [(8, "number of tensors"), (16, "number of metadata")])
@pytest.mark.parametrize("count", [2**31, 2**63 - 1, 2**64 - 1])
def test_counts_beyond_the_file(at, what, count, file, valid) -> None:
    refused(file, valid[:at] + struct.pack("<Q", count) + valid[at + 8 :], what, str(count))


def after(valid: bytes, word: bytes) -> int:
    return valid.index(word) + len(word)


@pytest.mark.parametrize("count", [2**40, 2**63])
def test_a_length_beyond_the_file(count, file, valid) -> None:
    at = after(valid, b"tokenizer.ggml.tokens") + 8  # type, and type of the elements
    refused(file, valid[:at] + struct.pack("<Q", count) + valid[at + 8 :], "tokenizer.ggml.tokens")


def test_a_tensor_larger_than_the_file(file, valid) -> None:
    at = after(valid, b"output_norm.weight") + 4  # number of dimensions
    refused(file, valid[:at] + struct.pack("<Q", 2**40) + valid[at + 8 :], "more weights")


def test_too_many_dimensions(file, valid) -> None:
    at = after(valid, b"output_norm.weight")
    refused(file, valid[:at] + struct.pack("<I", 2**31) + valid[at + 4 :], "dimensions")


@pytest.mark.parametrize("length", [4, 23, 24, 100, 2000])
def test_a_file_that_ends_early(length, file, valid) -> None:
    refused(file, valid[:length])


def test_blocks_that_are_not_there(file, valid) -> None:
    at = after(valid, b"llama.block_count") + 4
    refused(file, valid[:at] + struct.pack("<I", 10**6) + valid[at + 4 :], "block_count=1000000")


def test_no_count_of_blocks(file, valid) -> None:
    """transformers would take 32 for it, and look for their names for half a minute."""
    refused(file, valid.replace(b"llama.block_count", b"lama..block_count"), "block_count=None")


def test_widths_that_no_tensor_has(file, valid) -> None:
    at = after(valid, b"llama.feed_forward_length") + 4
    refused(file, valid[:at] + struct.pack("<I", 2**31) + valid[at + 4 :], "by its config")


def test_an_array_of_arrays(file, valid) -> None:
    at = after(valid, b"tokenizer.ggml.tokens") + 4
    refused(file, valid[:at] + struct.pack("<I", 9) + valid[at + 4 :], "array of type 9")


def test_a_name_that_is_no_text(file, valid) -> None:
    file.write_bytes(valid.replace(b"output_norm", b"output\xff\xfe\xfdrm"))
    with pytest.raises(Malformed, match="not UTF-8"):
        gguf_header.read(file)


def test_big_endian_headers_are_read(tmp_path: Path) -> None:
    def text(word: bytes) -> bytes:
        return struct.pack(">Q", len(word)) + word

    named = text(b"general.architecture") + struct.pack(">I", 8) + text(b"llama")
    count = text(b"llama.block_count") + struct.pack(">II", 4, 7)
    file = tmp_path / "big.gguf"
    file.write_bytes(b"GGUF" + struct.pack(">IQQ", 3, 0, 2) + named + count)
    assert gguf_header.read(file) == gguf_header.Header({"block_count": 7}, 0, 0)
