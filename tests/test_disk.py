"""A disk that is full or may not be written: the last good state stays, and the run goes on."""

from __future__ import annotations

import os
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from listening import Listener
from refusals import refusal, unprivileged
from tiny import save_tiny

from npft import config, folder, pipeline
from npft.folder import STAGES
from npft.plugins import discover


def run(model: Path, output: Path, **changes: object) -> Listener:
    heard = Listener()
    values = {
        "model": str(model),
        "output": str(output),
        "samples": 4,
        "context": 32,
        "eval_samples": 2,
        "tuning": {"epochs": 2, "batch_size": 2, "rank": 2},
        "quant": [{"name": "rtn"}],
        "bits": [3],
        "device": "cpu",
        **changes,
    }
    pipeline.run(config.make(values), discover(), heard)
    return heard


Resize = Callable[[int], None]


@pytest.fixture
def disk(tmp_path) -> Iterator[tuple[Path, Resize]]:
    """A small file system, and how to change its size in kilobytes."""
    place = tmp_path / "disk"
    place.mkdir()

    def mount(*options: str) -> int:
        command = ["mount", "-t", "tmpfs", *options, "npft-test", str(place)]
        return subprocess.run(command, check=False, capture_output=True).returncode

    if os.geteuid() != 0 or mount("-o", "size=100k") != 0:
        pytest.skip("needs to mount a file system: run as root")
    yield place, lambda kilobytes: mount("-o", f"remount,size={kilobytes}k") and None
    subprocess.run(["umount", "--lazy", str(place)], check=True)


def test_a_full_disk_leaves_the_last_good_state(disk, tmp_path) -> None:
    """However much fits, a larger disk lets the run go on to the same end."""
    place, resize = disk
    model = save_tiny(tmp_path / "model")
    output = place / "run"
    run(model, tmp_path / "whole")
    files = [path for path in (tmp_path / "whole").rglob("*") if path.is_file()]
    whole = sum(path.stat().st_size for path in files) // 1000
    sentences = set()
    for share in (0.1, 0.4, 0.6, 0.8):  # all too small
        resize(int(share * whole))
        sentences.add(refusal(lambda: run(model, output), "cannot be written").split("'")[1])
        assert not list(output.rglob(".*.part"))
    assert len(sentences) > 1  # it came further each time
    resize(100_000)
    heard = run(model, output)
    assert any("has already: scores" in note for note in heard.notes)
    names = [
        {str(path.relative_to(of)) for path in of.rglob("*")} for of in (output, tmp_path / "whole")
    ]
    assert names[0] == names[1]
    for name in ("merged/model.safetensors", "adapter/adapter_model.safetensors", "losses.json"):
        assert (output / name).read_bytes() == (tmp_path / "whole" / name).read_bytes()


def test_a_folder_that_became_read_only_keeps_what_it_has(tmp_path) -> None:
    model, output = save_tiny(tmp_path / "model"), tmp_path / "run"
    run(model, output)
    before = {path: path.read_bytes() for path in output.rglob("*") if path.is_file()}
    places = [tmp_path, output, *(path for path in output.rglob("*") if path.is_dir())]
    try:
        for place in places:
            place.chmod(0o555)
        with unprivileged():
            refusal(lambda: run(model, output, bits=[4]), "cannot be written")
    finally:
        for place in places:
            place.chmod(0o755)
    assert {path: path.read_bytes() for path in output.rglob("*") if path.is_file()} == before


def test_a_failed_replacement_leaves_the_old_part(tmp_path) -> None:
    with folder.create(tmp_path / "r") as kept:
        with kept.writing("adapter") as draft:
            draft.mkdir()
            (draft / "weights").write_text("good")
        with pytest.raises(folder.NpftError, match="disk full"), kept.writing("adapter") as draft:
            draft.mkdir()
            (draft / "weights").write_text("half")
            raise ValueError("I/O error: No space left on device (os error 28)")
        assert (kept / "adapter" / "weights").read_text() == "good"
        assert not list(kept.path.rglob(".*.part"))
        assert [path.name for path in (kept / STAGES).iterdir()] == []
