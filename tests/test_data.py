from __future__ import annotations

import importlib.util
import itertools
import json
import os
import re
from pathlib import Path

import pytest
import torch
from refusals import refusal, unprivileged
from tiny import tiny_tokenizer

from npft import data

TEXT = "The quick brown fox, naïve as ever — 42 jumps.\n\nAnd  another\tparagraph.\n" * 7


def write(file: Path, content: bytes | str) -> str:
    file.write_bytes(content if isinstance(content, bytes) else content.encode())
    return str(file)


# Texts that are read


def test_a_text_file_is_one_document(tmp_path: Path) -> None:
    assert data.load_text(write(tmp_path / "a.txt", TEXT)) == [TEXT]


def test_each_json_line_is_a_document(tmp_path: Path) -> None:
    texts = ["one\ntwo", "θ\u2028\u0085 stays on its line", ""]
    lines = "".join(
        json.dumps({"id": 1, "text": text}, ensure_ascii=False) + "\n" for text in texts
    )
    assert data.load_text(write(tmp_path / "a.jsonl", f"\n{lines}\n \n")) == texts


def test_the_suffix_may_be_in_capitals(tmp_path: Path) -> None:
    line = '{"text": "a b"}'
    assert data.load_text(write(tmp_path / "A.TXT", line)) == [line]
    assert data.load_text(write(tmp_path / "b.JsonL", line)) == ["a b"]


@pytest.mark.parametrize("line_end", ["\n", "\r\n", "\r"])
@pytest.mark.parametrize("mark", [b"", b"\xef\xbb\xbf"], ids=["plain", "bom"])
def test_line_ends_and_byte_order_mark_make_no_difference(
    line_end: str, mark: bytes, tmp_path: Path
) -> None:
    text = write(tmp_path / "a.txt", mark + "é one\n\ntwo\n".replace("\n", line_end).encode())
    assert data.load_text(text) == ["é one\n\ntwo\n"]
    lines = '{"text": "one\\r\\n"}\n{"text": "two"}\n'.replace("\n", line_end)
    assert data.load_text(write(tmp_path / "a.jsonl", mark + lines.encode())) == ["one\r\n", "two"]


def test_a_home_folder_is_found(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    write(tmp_path / "a.txt", TEXT)
    assert data.load_text("~/a.txt") == [TEXT]


# The built-in text


def paragraphs(documents: list[str]) -> list[str]:
    """Paragraphs whose line breaks and indentation do not tell them apart."""
    found = re.split(r"\n[ \t]*\n", "\n\n".join(documents))
    return [words for words in (" ".join(one.split()) for one in found) if words]


def test_the_built_in_parts_share_no_paragraph() -> None:
    learnt = paragraphs(data.load_text("builtin"))
    held_back = paragraphs(data.load_text("builtin", "held-back"))
    assert set(learnt).isdisjoint(held_back)
    assert len(set(learnt)) == len(learnt)
    assert len(set(held_back)) == len(held_back)


def test_the_built_in_parts_are_large_enough_to_use() -> None:
    sizes = {split: sum(map(len, data.load_text("builtin", split))) for split in SPLITS}
    assert sizes["calibration"] > 300_000
    assert sizes["held-back"] > 40_000
    assert sizes["calibration"] > sizes["held-back"]


SPLITS = ("calibration", "held-back")


def test_the_built_in_parts_hold_the_whole_text_once() -> None:
    from pydoc_data.topics import topics

    both = paragraphs([d for split in SPLITS for d in data.load_text("builtin", split)])
    assert sorted(both) == sorted(set(paragraphs(list(topics.values()))))


def test_every_fourth_topic_is_held_back_and_repeats_go_to_the_first() -> None:
    topics = {
        "d": "\nfour\n\nshared by b\nand d\n",
        "b": "two\n\nshared   by b\n   and d",
        "a": "one\n\n\n\none again",
        "c": "one",
        "e": "five\n\nfour\n",
    }
    assert data.split_topics(topics, held_back=False) == [
        "one\n\none again",
        "two\n\nshared   by b\n   and d",
        "five",
    ]
    assert data.split_topics(topics, held_back=True) == ["four"]


# Windows


@pytest.mark.parametrize("context", [1, 2, 7, 64, 100])
def test_windows_are_consecutive_slices_of_the_joined_text(context: int) -> None:
    documents = [TEXT, "Zwölf", "last one"]
    tokenizer = tiny_tokenizer()
    stream = tokenizer.encode(documents[0] + "\n\n" + documents[1] + "\n\n" + documents[2])
    expected = [
        stream[start : start + context] for start in range(0, len(stream) - context + 1, context)
    ]
    cut = data.windows(tokenizer, documents, context)
    assert cut.dtype == torch.int64
    assert cut.tolist() == expected
    whole = tokenizer.decode(list(itertools.chain.from_iterable(expected)))
    assert "\n\n".join(documents).startswith(whole.rstrip("\ufffd"))


def test_a_text_of_exactly_one_window_is_enough() -> None:
    assert data.windows(tiny_tokenizer(), ["abcd"], 4).shape == (1, 4)


@pytest.mark.parametrize(("text", "tokens"), [("abc", 3), ("", 0)])
def test_less_than_one_window_is_refused(text: str, tokens: int) -> None:
    refusal(
        lambda: data.windows(tiny_tokenizer(), [text], 4, "short.txt"),
        "'short.txt'",
        f"{tokens} tokens",
        "one window of 4",
        "--context",
    )


def test_tokens_beyond_the_vocabulary_are_refused() -> None:
    tokens = torch.tensor([[0, 255], [256, 3]])
    data.check_vocabulary(tokens, 257)
    refusal(lambda: data.check_vocabulary(tokens, 256, "a.txt"), "'a.txt'", "256", "tokenizer")


ALL = torch.arange(40 * 3).view(40, 3)


@pytest.mark.parametrize("samples", [1, 17, 40])
@pytest.mark.parametrize("seed", [0, 5])
def test_chosen_windows_are_whole_distinct_and_repeatable(samples: int, seed: int) -> None:
    chosen = data.choose(ALL, samples, seed)
    assert chosen.shape == (samples, 3)
    rows = chosen[:, 0] // 3
    assert torch.equal(chosen, ALL[rows])
    assert len(set(rows.tolist())) == samples
    assert torch.equal(chosen, data.choose(ALL, samples, seed))


def test_all_windows_are_chosen_where_there_are_too_few() -> None:
    assert torch.equal(data.choose(ALL, 41, 0), ALL)


def test_another_seed_chooses_other_windows() -> None:
    choices = {tuple(data.choose(ALL, 10, seed)[:, 0].tolist()) for seed in range(20)}
    assert len(choices) == 20


def test_every_window_can_be_chosen() -> None:
    # Each of 40 is missed by 200 draws of 10 with probability (3/4)**200, which is 1e-25.
    seen = torch.cat([data.choose(ALL, 10, seed) for seed in range(200)])
    assert len(seen[:, 0].unique()) == 40


def test_batches_hold_all_windows_in_order() -> None:
    parts = list(data.batches(ALL, 16, "cpu"))
    assert [len(part) for part in parts] == [16, 16, 8]
    assert torch.equal(torch.cat(parts), ALL)


# Texts that are refused

BAD_FILES = {
    "empty": ("a.txt", b"", ["is empty"]),
    "white space": ("a.txt", b" \n\t\r\n", ["is empty"]),
    "only a byte order mark": ("a.txt", b"\xef\xbb\xbf", ["is empty"]),
    "binary": ("a.txt", b"PK\x03\x04\0\0text", ["binary"]),
    "utf-16": ("a.txt", "Zwölf".encode("utf-16"), ["UTF-16", "convert it to UTF-8"]),
    "latin-1": ("a.txt", "Zwölf".encode("latin-1"), ["not UTF-8", "byte 2"]),
    "empty lines": ("a.jsonl", b"\n\n", ["is empty"]),
    "blank texts": ("a.jsonl", b'{"text": " "}\n{"text": ""}\n', ["is empty", "'text'"]),
    "broken line": ("a.jsonl", b'{"text": "a"}\n\n{"text": "b"\n', ["line 3", "not JSON"]),
    "deep line": ("a.jsonl", b'{"text": "a"}\n' + b"[" * 200_000, ["line 2", "not JSON"]),
    "list": ("a.jsonl", b'["a"]', ["line 1", "not a JSON object"]),
    "number": ("a.jsonl", b"3", ["line 1", "not a JSON object"]),
    "no field": ("a.jsonl", b'{"txt": "a", "id": 1}', ["line 1", "'text'", "'txt', 'id'"]),
    "not a string": ("a.jsonl", b'{"text": 3}', ["line 1", "int"]),
    "null": ("a.jsonl", b'{"text": null}', ["line 1", "'text'"]),
    "surrogate": ("a.jsonl", b'{"text": "a\\ud800b"}', ["line 1", "surrogate"]),
    "csv": ("a.csv", b"text\na\n", ["neither a .jsonl nor a .txt"]),
    "no suffix": ("text", b"a\n", ["neither a .jsonl nor a .txt"]),
}


@pytest.mark.parametrize(("name", "content", "parts"), BAD_FILES.values(), ids=BAD_FILES)
def test_a_bad_file_is_refused(name: str, content: bytes, parts: list[str], tmp_path: Path) -> None:
    file = write(tmp_path / name, content)
    refusal(lambda: data.load_text(file), file, *parts)


@pytest.mark.parametrize("name", ["a.txt", "a.jsonl", "a.csv"])
def test_a_missing_file_is_refused(name: str, tmp_path: Path) -> None:
    file = str(tmp_path / name)
    refusal(lambda: data.load_text(file), file, "is not there")


def test_a_folder_is_refused(tmp_path: Path) -> None:
    folder = tmp_path / "x.txt"
    folder.mkdir()
    refusal(lambda: data.load_text(str(folder)), str(folder), "Is a directory")


@pytest.mark.parametrize(
    "path", ["/" + "x" * 5000 + ".txt", "~nobody-by-this-name/a.txt", "a\0b.txt"]
)
def test_an_impossible_path_is_refused(path: str) -> None:
    refusal(lambda: data.load_text(path), repr(path[:10])[:-1])


def test_a_file_without_permission_is_refused(tmp_path: Path) -> None:
    file = write(tmp_path / "a.txt", TEXT)
    os.chmod(file, 0)
    with unprivileged():
        refusal(lambda: data.load_text(file), file, "Permission denied")


@pytest.mark.skipif(importlib.util.find_spec("datasets") is not None, reason="datasets is there")
def test_a_hub_data_set_without_its_library_says_what_to_install() -> None:
    refusal(lambda: data.load_text("allenai/c4:en"), "allenai/c4:en", "pip install 'npft[hub]'")


def test_a_hub_data_set_is_read_up_to_a_limit(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pytest.importorskip("datasets")
    (tmp_path / "set").mkdir()
    rows = "".join(json.dumps({"text": text}) + "\n" for text in ["aaaa", None, "", "bbbb", "cc"])
    write(tmp_path / "set" / "train.jsonl", rows)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(data, "HUB_CHARACTERS", 5)
    assert data._hub("set") == ["aaaa", "bbbb"]
    refusal(lambda: data._hub("set::test"), "'set::test'")
