"""LoRA on and off a model: attach, save, load, merge."""

from __future__ import annotations

import json
import math
from pathlib import Path

import pytest
import torch
from peft import PeftModel
from refusals import refusal
from tiny import tiny_model, tiny_network, tiny_tokens
from torch import Tensor

from npft import adapters
from npft.adapters import Adapter, attached, extract, load_adapter, merge, trainable
from npft.artifacts import LanguageModel
from npft.errors import NpftError

RANK, ALPHA = 3, 12.0
architectures = pytest.mark.parametrize("architecture", ["Llama", "GPT2", "OPT", "GPTNeoX"])


def attach(model: LanguageModel, dropout: float = 0.0, seed: int = 0) -> object:
    return attached(model, list(model.layers), rank=RANK, alpha=ALPHA, dropout=dropout, seed=seed)


def random_adapter(model: LanguageModel, seed: int = 1) -> Adapter:
    """An adapter that changes every layer noticeably."""
    random = torch.Generator().manual_seed(seed)
    with attach(model) as (wrapped, _), torch.no_grad():
        for parameter in adapters.trainable(wrapped):
            parameter.copy_(0.3 * torch.randn(parameter.shape, generator=random))
        return extract(wrapped, [])


def logits(network: torch.nn.Module) -> Tensor:
    with torch.no_grad():
        return network(input_ids=tiny_tokens()).logits


def state(model: LanguageModel) -> dict[str, Tensor]:
    return {name: value.clone() for name, value in model.network.state_dict().items()}


def same(one: dict[str, Tensor], other: dict[str, Tensor]) -> bool:
    return one.keys() == other.keys() and all(torch.equal(one[n], other[n]) for n in one)


@architectures
def test_merged_weights_are_base_plus_scaled_product(architecture: str) -> None:
    model = tiny_model(architecture)
    adapter = random_adapter(model)
    merged = merge(model, adapter)
    for name, layer in model.layers.items():
        a, b = (adapter.weights[f"base_model.model.{name}.lora_{x}.weight"] for x in "AB")
        assert a.shape == (RANK, layer.in_features)
        assert b.shape == (layer.out_features, RANK)
        expected = layer.weight.double() + (b.double() @ a.double()) * ALPHA / RANK
        found = merged.layers[name].weight
        torch.testing.assert_close(found, expected.float(), rtol=1e-5, atol=1e-5)
        assert not torch.allclose(found, layer.weight, atol=0.1)


@architectures
def test_merging_changes_nothing_but_the_copys_layers(architecture: str) -> None:
    model = tiny_model(architecture)
    before = state(model)
    merged = merge(model, random_adapter(model))
    assert same(state(model), before)
    after = state(merged)
    assert after.keys() == before.keys()
    layers = {f"{name}.weight" for name in model.layers}
    changed = {name for name in before if not torch.equal(after[name], before[name])}
    assert changed == layers
    assert list(merged.layers) == list(model.layers)
    modules = dict(merged.network.named_modules())
    assert all(layer.module is modules[name] for name, layer in merged.layers.items())


@architectures
def test_a_saved_adapter_opens_in_peft(architecture: str, tmp_path: Path) -> None:
    model = tiny_model(architecture)
    adapter = random_adapter(model)
    adapter.save(tmp_path / "adapter")
    opened = PeftModel.from_pretrained(tiny_network(architecture), str(tmp_path / "adapter"))
    opened.eval()
    theirs = logits(opened)
    torch.testing.assert_close(logits(merge(model, adapter).network), theirs, rtol=1e-4, atol=1e-4)
    assert (theirs - logits(model.network)).abs().max() > 0.1


def test_a_loaded_adapter_is_the_saved_one(tmp_path: Path) -> None:
    model = tiny_model()
    adapter = random_adapter(model)
    adapter.save(tmp_path)
    loaded = load_adapter(tmp_path)
    assert same(loaded.weights, adapter.weights)
    assert (loaded.config.r, loaded.config.lora_alpha) == (RANK, ALPHA)
    assert same(state(merge(model, loaded)), state(merge(model, adapter)))


@architectures
def test_a_fresh_adapter_predicts_what_the_model_predicts(architecture: str) -> None:
    model = tiny_model(architecture)
    before = logits(model.network)
    with attach(model) as (wrapped, adapted):
        wrapped.eval()
        assert torch.equal(logits(wrapped), before)
        for name, layer in adapted.layers.items():
            assert torch.equal(layer.weight, model.layers[name].weight)
            assert layer.base.data_ptr() == model.layers[name].weight.data_ptr()


@architectures
def test_layers_under_an_adapter_know_their_effective_weight(architecture: str) -> None:
    model = tiny_model(architecture)
    adapter = random_adapter(model)
    merged = merge(model, adapter)
    with attach(model) as (wrapped, adapted):
        for parameter, trained in zip(
            adapters.trainable(wrapped), adapter.weights.values(), strict=True
        ):
            parameter.data.copy_(trained)
        for name, layer in adapted.layers.items():
            assert torch.equal(layer.base, model.layers[name].weight)
            torch.testing.assert_close(layer.weight, merged.layers[name].weight)
            assert (layer.kind, layer.name) == (model.layers[name].kind, name)


@architectures
@pytest.mark.parametrize("failing", [False, True])
def test_detaching_leaves_the_model_as_it_was(architecture: str, failing: bool) -> None:
    model = tiny_model(architecture)
    before, predicted = state(model), logits(model.network)
    modules = [id(module) for module in model.network.modules()]
    try:
        with attach(model) as (wrapped, _):
            wrapped.train()
            assert len(list(model.network.modules())) > len(modules)
            if failing:
                raise KeyboardInterrupt
    except KeyboardInterrupt:
        pass
    assert [id(module) for module in model.network.modules()] == modules
    assert same(state(model), before)
    assert not any(module.training for module in model.network.modules())
    assert not any(p.requires_grad for p in model.network.parameters())
    assert torch.equal(logits(model.network), predicted)


def test_initialisation_depends_on_the_seed_alone() -> None:
    def fresh(seed: int) -> dict[str, Tensor]:
        with attach(tiny_model(), seed=seed) as (wrapped, _):
            return extract(wrapped, []).weights

    torch.manual_seed(1)
    first = fresh(0)
    torch.manual_seed(2)
    before = torch.get_rng_state()
    assert same(fresh(0), first)
    assert torch.equal(torch.get_rng_state(), before)
    assert not same(fresh(1), first)


@pytest.mark.parametrize(
    "other",
    [
        {"hidden_size": 48},
        {"num_hidden_layers": 1},
        {"architecture": "GPT2"},
        {"architecture": "OPT"},
    ],
    ids=str,
)
def test_an_adapter_of_another_model_is_refused(other: dict[str, object]) -> None:
    adapter = random_adapter(tiny_model())
    with pytest.raises(NpftError, match="the adapter does not belong to this model"):
        merge(tiny_model(**other), adapter)  # type: ignore[arg-type]


@pytest.mark.parametrize("broken", [math.nan, math.inf])
def test_a_broken_adapter_is_refused(broken: float) -> None:
    model = tiny_model()
    adapter = random_adapter(model)
    next(iter(adapter.weights.values()))[0, 0] = broken
    with pytest.raises(NpftError, match="the adapter cannot be merged"):
        merge(model, adapter)


@pytest.mark.parametrize("missing", ["adapter_config.json", "adapter_model.safetensors", None])
def test_a_folder_without_an_adapter_is_refused(missing: str | None, tmp_path: Path) -> None:
    random_adapter(tiny_model()).save(tmp_path)
    if missing is None:
        (tmp_path / "adapter_model.safetensors").write_bytes(b"\0" * 100)
    else:
        (tmp_path / missing).unlink()
    with pytest.raises(NpftError, match=r"there is no readable adapter in .*: run npft tune"):
        load_adapter(tmp_path)


@architectures
def test_normalisations_are_trained_merged_and_put_back(architecture: str) -> None:
    model = tiny_model(architecture)
    before, modules = state(model), dict(model.network.named_modules())
    norms = [n for n in before if "norm" in n.lower() or "ln_" in n]
    random = torch.Generator().manual_seed(1)
    with (
        attached(
            model, list(model.layers), rank=RANK, alpha=ALPHA, dropout=0.0, norms=True, seed=0
        ) as (wrapped, _),
        torch.no_grad(),
    ):
        for parameter in adapters.trainable(wrapped):
            parameter.add_(0.1 * torch.randn(parameter.shape, generator=random))
        wrapped.eval()
        adapted = logits(wrapped)
        with adapters.Switches(wrapped).without_adapter():
            off = logits(wrapped)
            flags = [p.requires_grad for p in wrapped.parameters()]
        assert not any(flags)
        assert torch.equal(logits(wrapped), adapted)
        with wrapped.disable_adapter():
            assert torch.equal(logits(wrapped), off)
        adapter = extract(wrapped, [])
    assert {f"base_model.model.{name}" for name in norms} == {
        name for name in adapter.weights if ".lora_" not in name
    }
    torch.testing.assert_close(off, logits(model.network), rtol=1e-5, atol=1e-5)
    assert same(state(model), before)
    assert all(module is modules[name] for name, module in model.network.named_modules())
    merged = merge(model, adapter)
    torch.testing.assert_close(logits(merged.network), adapted, rtol=1e-4, atol=1e-4)
    after = state(merged)
    assert all(torch.equal(after[n], adapter.weights[f"base_model.model.{n}"]) for n in norms)


@architectures
def test_normalisations_of_a_bfloat16_model_learn_in_float32(architecture: str) -> None:
    """A step of 1e-3 on a weight of 1 is less than half a step of bfloat16."""
    model = tiny_model(architecture)
    model.network.bfloat16()
    with attached(
        model, list(model.layers), rank=RANK, alpha=ALPHA, dropout=0.0, norms=True, seed=0
    ) as (wrapped, _):
        wrapped.eval()
        norms = [p for n, p in wrapped.named_parameters() if p.requires_grad and "lora_" not in n]
        assert norms
        assert all(p.dtype == torch.float32 for p in norms)
        assert logits(wrapped).dtype == torch.bfloat16
        for parameter in norms:
            parameter.data.add_(1e-3)
        adapter = extract(wrapped, [])
    kept = [v for n, v in adapter.weights.items() if "lora_" not in n]
    before = [v for n, v in state(model).items() if f"base_model.model.{n}" in adapter.weights]
    moved = [(a - b.float()).abs().min() for a, b in zip(kept, before, strict=True)]
    assert min(moved) > 9e-4
    assert merge(model, adapter).network.dtype == torch.bfloat16


def test_an_adapter_with_normalisations_merges_alike_from_its_folder(tmp_path: Path) -> None:
    model = tiny_model()
    layers = list(model.layers)
    with (
        attached(model, layers, rank=2, alpha=4, dropout=0.0, norms=True, seed=0) as (wrapped, _),
        torch.no_grad(),
    ):
        for parameter in trainable(wrapped):
            parameter.add_(0.1)
        adapter = extract(wrapped, [])
    adapter.save(tmp_path)
    one, other = merge(model, adapter), merge(model, load_adapter(tmp_path))
    for name, values in one.network.state_dict().items():
        assert torch.equal(other.network.state_dict()[name], values), name
    norm = "model.norm.weight"
    assert not torch.equal(one.network.state_dict()[norm], model.network.state_dict()[norm])


@pytest.mark.parametrize(
    ("changes", "part"),
    [
        ({"megatron_config": {"a": 1}, "megatron_core": "megatron.other"}, "'megatron_config'"),
        ({"use_dora": True}, "'use_dora'"),
        ({"rank_pattern": {"q_proj": 3}}, "'rank_pattern'"),
        ({"eva_config": {"rho": 2}}, "'eva_config'"),
        ({"bias": "all"}, "'bias'"),
        ({"unheard_of": 1}, "'unheard_of'"),
    ],
)
def test_more_than_a_plain_lora_is_refused(changes, part, tmp_path: Path) -> None:
    """peft would import modules that an adapter names, and merge other things than B A."""
    random_adapter(tiny_model()).save(tmp_path)
    change(tmp_path, changes)
    refusal(lambda: load_adapter(tmp_path), str(tmp_path), part, "plain LoRA")


def test_more_than_normalisations_beside_it_is_refused(tmp_path: Path) -> None:
    model = tiny_model()
    random_adapter(model).save(tmp_path)
    change(tmp_path, {"modules_to_save": ["lm_head"]})
    refusal(lambda: merge(model, load_adapter(tmp_path)), "'lm_head'", "normalisations alone")


@pytest.mark.parametrize(
    "changes",
    [
        {"r": 0},
        {"r": "4"},
        {"lora_alpha": math.nan},
        {"lora_alpha": -1},
        {"target_modules": "(a+)+$"},
        {"target_modules": None},
        {"lora_dropout": 1},
    ],
)
def test_settings_that_mean_nothing_are_refused(changes, tmp_path: Path) -> None:
    random_adapter(tiny_model()).save(tmp_path)
    change(tmp_path, changes)
    refusal(lambda: load_adapter(tmp_path), str(tmp_path), "no readable adapter")


def test_a_rank_that_its_weights_do_not_have_is_refused(tmp_path: Path) -> None:
    """An adapter of that rank is made before its weights are put in, and may be huge."""
    random_adapter(tiny_model()).save(tmp_path)
    change(tmp_path, {"r": 10**9})
    refusal(lambda: load_adapter(tmp_path), "rank 1000000000", "lora_A")


@pytest.mark.parametrize("lacking", [False, True])
def test_trained_normalisations_are_read_again(lacking: bool, tmp_path: Path) -> None:
    model = tiny_model()
    options = {"rank": RANK, "alpha": ALPHA, "dropout": 0.0, "norms": True, "seed": 0}
    with attached(model, list(model.layers), **options) as (wrapped, _):  # type: ignore[arg-type]
        adapter = extract(wrapped, [])
    if lacking:
        del adapter.weights["base_model.model.model.norm.weight"]
    adapter.save(tmp_path)
    loaded = load_adapter(tmp_path)
    if lacking:
        refusal(lambda: merge(model, loaded), "does not belong to this model", "norm")
    else:
        assert same(state(merge(model, loaded)), state(merge(model, adapter)))


def test_an_adapter_that_lacks_a_layer_is_refused() -> None:
    """It would be merged as far as it goes."""
    model = tiny_model()
    adapter = random_adapter(model)
    name = next(iter(adapter.weights))
    del adapter.weights[name]
    refusal(lambda: merge(model, adapter), "does not belong to this model", "lora_")


def change(folder: Path, changes: dict[str, object]) -> None:
    file = folder / "adapter_config.json"
    file.write_text(json.dumps({**json.loads(file.read_text()), **changes}))
