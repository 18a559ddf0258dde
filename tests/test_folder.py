import subprocess
import sys

import pytest
from refusals import unprivileged

from npft import folder
from npft.errors import NpftError


def test_nothing_is_left_of_a_run_that_kept_nothing(tmp_path) -> None:
    with pytest.raises(ValueError, match="boom"), folder.create(tmp_path / "a" / "b"):
        raise ValueError("boom")
    assert not (tmp_path / "a" / "b").exists()


def test_what_was_finished_stays(tmp_path) -> None:
    with pytest.raises(ValueError, match="boom"), folder.create(tmp_path / "r") as kept:
        kept.write_text("config.toml", "a = 1\n")
        with kept.writing("merged") as draft:
            draft.mkdir()
            (draft / "half").write_text("x")
            raise ValueError("boom")
    names = {path.name for path in (tmp_path / "r").iterdir()} - {folder.LOCK}
    assert names == {"config.toml", folder.STAGES}


def test_a_second_writing_replaces_the_first_whole(tmp_path) -> None:
    with folder.create(tmp_path / "r") as kept:
        for text in ("old", "new"):
            with kept.writing("merged") as draft:
                draft.mkdir()
                (draft / text).write_text(text)
        assert [path.name for path in (kept / "merged").iterdir()] == ["new"]


def test_a_folder_with_content_is_refused(tmp_path) -> None:
    (tmp_path / "mine.txt").write_text("precious")
    with pytest.raises(NpftError, match="not empty"), folder.create(tmp_path):
        pass
    assert (tmp_path / "mine.txt").read_text() == "precious"


def test_a_folder_in_use_by_another_process_is_refused_until_it_dies(tmp_path) -> None:
    hold = (
        "import sys, time; from pathlib import Path; from npft import folder\n"
        f"with folder.create(Path({str(tmp_path / 'r')!r})) as kept:\n"
        "    kept.write_text('config.toml', ''); print('held', flush=True); time.sleep(60)\n"
    )
    with subprocess.Popen([sys.executable, "-c", hold], stdout=subprocess.PIPE) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == b"held\n"
        for opening in (folder.create, folder.opened):
            with pytest.raises(NpftError, match="in use by another run"), opening(tmp_path / "r"):
                pass
        process.kill()
        process.wait()
    with folder.opened(tmp_path / "r"):
        pass


def test_a_read_only_place_is_one_sentence(tmp_path) -> None:
    tmp_path.chmod(0o500)
    with unprivileged(), pytest.raises(NpftError, match="cannot be made"):
        folder.create(tmp_path / "r").__enter__()


def test_a_file_in_the_way_is_one_sentence(tmp_path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(NpftError, match="cannot be made"), folder.create(tmp_path / "file" / "r"):
        pass
