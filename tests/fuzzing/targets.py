"""Every kind of file that npft reads, by name."""

from __future__ import annotations

import json
import os
from collections.abc import Callable
from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from random import Random
from typing import Any

import torch
from checkpoint_folders import act_ordered, quantized, with_sparse
from fuzzing.folders import of_folders
from fuzzing.mutations import atom, damaged, damaged_bytes, damaged_tree
from fuzzing.target import Prepared, Target
from fuzzing.weights import weights
from packed_samples import codebook_weight, uniform_weight
from rich.console import Console
from tiny import save_tiny, tiny_model, tiny_tokenizer, tiny_tokens
from tiny_gguf import VOCABULARY, write_gguf

from npft import adapters, checkpoints, config, data, models, pipeline, stages, tuning
from npft.artifacts import Outliers, PowerWeight, QuantizedModel
from npft.checkpoints import MANIFEST, WEIGHTS
from npft.checkpoints.layer import load_layer, save_layer
from npft.cli.options import configure
from npft.errors import NpftError
from npft.evaluation import most_sensitive
from npft.folder import CONFIG, STAGES, RunFolder
from npft.ledger import Ledger, differences
from npft.objectives import KL
from npft.packed.model import pack_model
from npft.packed.tensors import from_weight
from npft.plugins import discover
from npft.progress import Silent
from npft.quantizers import RTN, KMeans, Nonuniform
from npft.report import comparison, page, table
from npft.report.reading import BENCH, RESULTS, Bench, Latency, read_run
from npft.samplers import Residual
from npft.scorers import Fisher
from npft.stages import Workspace
from npft.stages.training import LOSSES, Epochs
from npft.stages.variants import SENSITIVITY

KINDS = ("sampler", "scorer", "objective", "tuning", "quant", "quant.rtn", "quant.kmeans", "x")
NAMES = ("scale", "bits", "group_size", "lr", "epochs", "name", "sym", "noise_bits", "a.b", "")
VALUES = ("4", "true", "0.5", "[3, 4]", "1e-3", "16", "rtn", "kmeans", "''")
ONE_BLOCK: dict[str, Any] = {"num_hidden_layers": 1}


def _settings(scratch: Path) -> dict[str, Any]:
    return {"model": str(scratch / "model"), "output": str(scratch / "run"), "seed": 0}


def config_toml(scratch: Path) -> Prepared:
    """The config.toml of a run, under flags and options."""
    catalog = discover()
    settings = config.make(_settings(scratch))
    settings = pipeline.in_full(settings, pipeline.plan(settings, catalog))
    folder = scratch / "toml"
    folder.mkdir()
    (folder / CONFIG).write_text(config.dumps(settings, {"npft": "1", "peak_memory_gb": 1.5}))

    def alone(folder: Path) -> None:
        found = configure({"config": str(folder / CONFIG), "output": "x"})
        config.dumps(pipeline.in_full(found, pipeline.plan(found, catalog)), {})

    def under(folder: Path) -> None:
        flags = {"epochs": 1, "limit": 3, "tasks": "", "options": ("tuning.rank=2", "quant.bits=3")}
        found = configure({"config": str(folder / CONFIG), "output": "x", **flags})
        pipeline.plan(found, catalog)

    def read(folder: Path) -> None:
        with suppress(NpftError):
            under(folder)
        alone(folder)

    return of_folders([folder], read)


def options(scratch: Path) -> Prepared:
    """``-o KIND.OPTION=VALUE``, once or twice."""
    catalog = discover()

    def one(random: Random) -> str:
        kind = random.choice(KINDS)
        if random.randrange(9) == 0:
            return "tuning.lr=" + "[" * random.choice([3, 200, 50_000])
        tree = damaged_tree(random, {"a": [3, 4], "b": {"c": 1.5}, "d": "x"})
        shown = json.dumps(tree).replace(":", " =").replace("null", "nan")
        value = random.choice([str(atom(random)), *VALUES, shown])
        whole = f"{kind}.{random.choice(NAMES)}={value}"
        return whole if random.randrange(9) else damaged_text(random, whole)

    def read(chosen: list[str]) -> None:
        flags = {**_settings(scratch), "options": tuple(chosen)}
        found = configure(flags)
        config.dumps(pipeline.in_full(found, pipeline.plan(found, catalog)), {})

    valid = [["quant.bits=4", "tuning.lr=1e-3"], ["tuning.noise_bits=[3]"]]
    return Prepared(lambda random: [one(random) for _ in range(random.randint(1, 2))], read, valid)


def damaged_text(random: Random, text: str) -> str:
    """An argument of a command line: whatever bytes it has, Python makes characters of them."""
    return os.fsdecode(damaged_bytes(random, text.encode("utf-8", "surrogatepass")))


def text(name: str, valid: bytes) -> Callable[[Path], Prepared]:
    """A text for calibration or evaluation."""

    def prepare(scratch: Path) -> Prepared:
        file = scratch / name

        def damage(random: Random) -> bytes:
            kind = "x.json" if name.endswith(".jsonl") else name
            if random.randrange(3) == 0:
                return damaged_bytes(random, valid)
            lines = [*valid.splitlines(), damaged(random, kind, random.choice(valid.splitlines()))]
            return b"\n".join(random.sample(lines, len(lines)))

        def read(content: bytes) -> None:
            file.write_bytes(content)
            found = data.windows(tiny_tokenizer(), data.load_text(str(file)), 16, str(file))
            data.check_vocabulary(found, 256, str(file))

        return Prepared(damage, read, [valid])

    return prepare


def model_folder(scratch: Path) -> Prepared:
    """Hugging Face folders: whole, in shards, with tied weights, transposed."""
    folders = [
        save_tiny(scratch / "llama", **ONE_BLOCK),
        save_tiny(scratch / "gpt2", "GPT2", n_layer=1),
    ]
    sharded = tiny_model("Qwen2", **ONE_BLOCK)
    folders.append(scratch / "shards")
    sharded.network.save_pretrained(folders[-1], max_shard_size="30KB")
    tiny_tokenizer().save_pretrained(folders[-1])
    return of_folders(folders, lambda folder: models.load(str(folder), device="cpu"))


def gguf(scratch: Path) -> Prepared:
    """GGUF files, damaged most often in a count or a length."""
    network = tiny_model(vocab_size=len(VOCABULARY), **ONE_BLOCK).network
    file = write_gguf(scratch / "model.gguf", network)
    valid, places = file.read_bytes(), header_places(file)

    def read(content: bytes) -> None:
        file.write_bytes(content)
        models.load(str(file), device="cpu")

    return Prepared(lambda random: damaged_bytes(random, valid, places), read, [valid])


def header_places(file: Path) -> list[int]:
    """Where the parts of a GGUF file's header begin: counts, lengths, types, names and values."""
    from gguf import GGUFReader

    reader, found = GGUFReader(file), {0, 4, 8, 16}
    for field in [*reader.fields.values(), *(tensor.field for tensor in reader.tensors)]:
        at = field.offset
        for part in field.parts[:12]:
            found.add(at)
            at += part.nbytes
    return sorted(found)


def adapter(scratch: Path) -> Prepared:
    """A LoRA adapter, merged into its model."""
    model = tiny_model(**ONE_BLOCK)
    with adapters.attached(model, list(model.layers), rank=2, alpha=4, dropout=0.1, seed=0) as (
        wrapped,
        _,
    ):
        adapters.extract(wrapped, []).save(scratch / "adapter")

    def read(folder: Path) -> None:
        adapters.merge(model, adapters.load_adapter(folder))

    return of_folders([scratch / "adapter"], read)


def scores(scratch: Path) -> Prepared:
    """The scores of a run folder, used as tuning uses them."""
    model, ledger = tiny_model(**ONE_BLOCK), Ledger(RunFolder(scratch), Silent())
    work = Workspace(ledger, model, tiny_tokens(2), {}, Fisher(), 2, 0, Silent())
    stages.score(work, 0.1, "matrix", keep=True).ensure()
    ones = {name: torch.ones(layer.weight.shape) for name, layer in model.layers.items()}

    def read(_: Path) -> None:
        found = stages.load_scored(work)()
        for name, chosen in found.outliers.items():
            weight = model.layers[name].weight.clone()
            chosen.put_(weight, chosen.take(weight))
        if found.sensitivities is not None:
            KMeans(bits=2).quantize(model, [], found.sensitivities)
        most_sensitive.compare(model, found.largest, ones.items())

    return of_folders([scratch / "scores"], read)


def state(scratch: Path) -> Prepared:
    """A training after one of its epochs, which goes on."""
    model, folder = tiny_model(**ONE_BLOCK), RunFolder(scratch / "epochs")
    every = {n: Outliers((x.out_features, x.in_features), None) for n, x in model.layers.items()}
    settings = tuning.Tuning(epochs=2, rank=2, batch_size=2)
    ones = {name: torch.ones(layer.weight.shape) for name, layer in model.layers.items()}
    plan = (model, tiny_tokens(4), every, Residual(), KL(), settings)
    tuning.tune(*plan, seed=0, sensitivities=ones, checkpoint=Epochs(folder))

    def read(_: Path) -> None:
        tuning.tune(*plan, seed=0, sensitivities=ones, checkpoint=Epochs(folder))

    return of_folders([folder.path], read)


def layer(scratch: Path) -> Prepared:
    """Single quantized layers, as an interrupted quantizer keeps them."""
    scratch = scratch / "layers"
    scratch.mkdir()
    for index, weight in enumerate((codebook_weight(3, 8, 24, sparse=0.1),
                                    uniform_weight(4, 8, 24, 8, shuffled=True))):  # fmt: skip
        save_layer(weight, scratch / f"{index}.safetensors")

    def read(folder: Path) -> None:
        for file in sorted(folder.glob("*.safetensors")):
            found = load_layer(file)
            from_weight(found)
            assert found.dequantize().isfinite().all()

    return of_folders([scratch], read)


def records(scratch: Path) -> Prepared:
    """What a run folder says of its stages."""
    finished_run(scratch)
    ledger = Ledger(RunFolder(scratch / "run"), Silent())

    def read(folder: Path) -> None:
        for file in sorted(folder.rglob("*.json")):
            record = ledger.read(str(file.relative_to(folder)).removesuffix(".json"))
            if record is not None:
                differences(record.inputs, {})

    return of_folders([scratch / "run" / STAGES], read)


def finished_run(scratch: Path) -> Path:
    """A run folder of a tiny model with everything that a report reads, and no model."""
    settings = {
        **_settings(scratch),
        "model": str(save_tiny(scratch / "model", **ONE_BLOCK)),
        **{"samples": 2, "context": 16, "eval_samples": 1, "bits": [4], "dtype": "float32"},
        "tuning": {"epochs": 1, "rank": 2},
    }
    pipeline.run(config.make(settings), discover())
    run = scratch / "report"
    run.mkdir()
    for name in (RESULTS, CONFIG, SENSITIVITY, *LOSSES.values()):
        (run / name).write_bytes((scratch / "run" / name).read_bytes())
    latency = [Latency(what="decode", variant="x", tokens=n, milliseconds=1, floor_ms=1)
               for n in (1, 2)]  # fmt: skip
    (run / BENCH).write_text(Bench(rows=latency, environment={"gpu": "x"}).model_dump_json())
    return run


def results(scratch: Path) -> Prepared:
    """What a report reads."""
    console = Console(width=120, quiet=True)

    def read(run: Path) -> None:
        found = read_run(run)
        console.print(table.render(found.report))
        stages.kept_losses(RunFolder(run))
        stages.kept_sensitivity(RunFolder(run))

    return of_folders([finished_run(scratch)], read)


def report(scratch: Path) -> Prepared:
    """The pages made of it."""

    def read(run: Path) -> None:
        found = read_run(run)
        page.render(found)
        comparison.render([found, found])

    return of_folders([finished_run(scratch)], read, [RESULTS, CONFIG, BENCH])


def packed(*made: Callable[[], QuantizedModel]) -> Callable[[Path], Prepared]:
    """Packed checkpoints, which run on their packed weights if they are taken."""

    def prepare(scratch: Path) -> Prepared:
        folders = []
        for index, make in enumerate(made):
            folders.append(scratch / f"checkpoint-{index}")
            make().save(folders[-1])
        only = ["config.json", MANIFEST, WEIGHTS, WEIGHTS, WEIGHTS]
        return of_folders(folders, run_packed, only)

    return prepare


def run_packed(folder: Path) -> None:
    """Load a checkpoint and run it."""
    found = checkpoints.load(folder, device="cpu")
    assert found.average_bits > 0
    if any(isinstance(weight, PowerWeight) for weight in found.weights.values()):
        return  # no packed kernels
    network = pack_model(found).network
    with torch.inference_mode():
        for count in (1, 8):  # by the kernels, and by dequantizing
            network(input_ids=tiny_tokens(1, count))


def _rtn(format: str, **changes: Any) -> Callable[[], QuantizedModel]:
    return lambda: replace(quantized(RTN(bits=4, **changes), **ONE_BLOCK), format=format)


TARGETS = {
    target.name: target
    for target in (
        Target("config", config_toml, 300),
        Target("options", options, 300),
        Target("jsonl", text("text.jsonl", b'{"text": "some words of it"}\n{"text": "b", "c": 1}')),
        Target("text", text("text.txt", "Some words, é🦙.\r\nAnd more.".encode())),
        Target("model", model_folder, 60),
        Target("gguf", gguf, 60),
        Target("adapter", adapter, 100),
        Target("scores", scores, 150),
        Target("state", state, 60),
        Target("layer", layer, 150),
        Target("records", records, 100),
        Target("results", results, 150),
        Target("report", report, 8),
        Target("weights", weights, 300),
        Target(
            "npft",
            packed(
                lambda: with_sparse(quantized(KMeans(bits=3), **ONE_BLOCK)),
                lambda: act_ordered(quantized(RTN(bits=4, group_size=16), **ONE_BLOCK)),
                lambda: quantized(Nonuniform(bits=4, group_size=16), **ONE_BLOCK),
            ),
            100,
        ),
        Target("gptq", packed(_rtn("gptq"), _rtn("gptq", group_size=16)), 60),
        Target("awq", packed(_rtn("awq", group_size=16)), 60),
        Target("compressed-tensors", packed(_rtn("compressed-tensors", group_size=16)), 60),
    )
}
"""Every kind of file."""
