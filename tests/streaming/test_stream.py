"""A streamed network is the same network, with few of its blocks on the device."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from recording import weights_of
from tiny import CONFIGS, tiny_model, tiny_tokens
from torch import Tensor, nn

from npft import models
from npft.artifacts import LanguageModel
from npft.streaming import Stream, find_blocks
from npft.streaming.stream import HELD

CPU = torch.device("cpu")
LAYERS = {"GPT2": "n_layer"}
every_architecture = pytest.mark.parametrize("architecture", CONFIGS)


def deep(architecture: str = "Llama", blocks: int = 5) -> dict[str, Any]:
    """The configuration of a model with more blocks than are held."""
    return {LAYERS.get(architecture, "num_hidden_layers"): blocks}


def streamed_model(architecture: str = "Llama", blocks: int = 5) -> LanguageModel:
    return models.streamed(tiny_model(architecture, **deep(architecture, blocks)), CPU)


def logits(network: nn.Module) -> Tensor:
    with torch.no_grad():
        return network(input_ids=tiny_tokens(), use_cache=False).logits


def held(stream: Stream) -> int:
    return sum(slot.index is not None for slot in stream._slots)


@every_architecture
def test_the_same_predictions(architecture: str) -> None:
    model = streamed_model(architecture)
    expected = logits(tiny_model(architecture, **deep(architecture)).network)
    assert torch.equal(logits(model.network), expected)
    assert model.stream is not None
    assert model.stream.loads == 5
    assert torch.equal(logits(model.network), expected)
    assert model.stream.loads == 10


@every_architecture
def test_gradients_of_what_is_trained_are_the_same(architecture: str) -> None:
    """Trained is what hooks add to each block's input: nothing that is streamed."""

    def gradients(network: nn.Module) -> list[Tensor]:
        network.requires_grad_(False)
        _, blocks = find_blocks(network)
        added = [torch.full((32,), 0.1 * i, requires_grad=True) for i, _ in enumerate(blocks)]
        for block, shift in zip(blocks, added, strict=True):
            block.register_forward_pre_hook(lambda _, args, s=shift: (args[0] + s, *args[1:]))
        with torch.enable_grad():
            loss = network(input_ids=tiny_tokens(), use_cache=False).logits.square().mean()
            return list(torch.autograd.grad(loss, added))

    model = streamed_model(architecture)
    found = gradients(model.network)
    expected = gradients(tiny_model(architecture, **deep(architecture)).network)
    for mine, theirs in zip(found, expected, strict=True):
        assert theirs.any()
        torch.testing.assert_close(mine, theirs, rtol=1e-5, atol=1e-6 * float(theirs.abs().max()))
    # forward all five; back, the last two are still there
    assert model.stream is not None
    assert model.stream.loads == 5 + 3


def test_copies_are_real_and_few() -> None:
    """While a block runs its parameters are elsewhere; afterwards they are where they were."""
    model = streamed_model()
    stream = model.stream
    assert stream is not None
    resting = [block.mlp.up_proj.weight.data_ptr() for block in stream.blocks]
    seen: list[int] = []

    def watch(index: int, module: nn.Module) -> Callable[..., None]:
        def hook(*_: Any) -> None:
            seen.append(index)
            assert module.mlp.up_proj.weight.data_ptr() not in resting
            assert held(stream) <= HELD
            here = {slot.index for slot in stream._slots}
            assert index in here
            for other, block in enumerate(stream.blocks):
                if other != index:
                    assert block.mlp.up_proj.weight.data_ptr() == resting[other]

        return hook

    for index, block in enumerate(stream.blocks):
        block.input_layernorm.register_forward_pre_hook(watch(index, block))
    logits(model.network)
    assert seen == [0, 1, 2, 3, 4]
    assert [b.mlp.up_proj.weight.data_ptr() for b in stream.blocks] == resting


def test_edits_are_seen_and_gone() -> None:
    model, clean = streamed_model(), logits(tiny_model(**deep()).network)
    stream = model.stream
    assert stream is not None
    before = weights_of(model)
    calls: list[int] = []

    def double(index: int) -> None:
        calls.append(index)
        stream.blocks[index].mlp.up_proj.weight.mul_(2)

    with stream.editing(double):
        edited = logits(model.network)
        assert torch.equal(logits(model.network), edited)
    assert calls == [0, 1, 2, 3, 4] * 2
    assert torch.equal(logits(model.network), clean)
    assert all(torch.equal(weight, before[name]) for name, weight in weights_of(model).items())
    for block in stream.blocks:
        block.mlp.up_proj.weight.data.mul_(2)  # in host memory, it lasts
    assert torch.equal(logits(model.network), edited)


def test_an_error_inside_leaves_the_weights_at_rest() -> None:
    model = streamed_model()
    assert model.stream is not None
    before = [p.data_ptr() for p in model.network.parameters()]

    def broken(index: int) -> None:
        if index == 2:
            raise OSError("gone")

    with pytest.raises(OSError, match="gone"), model.stream.editing(broken):
        logits(model.network)
    assert [p.data_ptr() for p in model.network.parameters()] == before
    assert torch.equal(logits(model.network), logits(tiny_model(**deep()).network))


def test_a_copy_is_streamed_and_independent() -> None:
    model = streamed_model()
    expected = logits(model.network)
    copied = model.copy()
    assert copied.stream is not None
    assert copied.stream is not model.stream
    with torch.no_grad():
        for layer in copied.layers.values():
            layer.weight.zero_()
    assert torch.equal(logits(model.network), expected)
    assert not torch.equal(logits(copied.network), expected)


def test_blocks_of_several_shapes_share_the_slots() -> None:
    """A network whose second block is wider than the others."""

    class Block(nn.Module):
        def __init__(self, width: int) -> None:
            super().__init__()
            self.up, self.down = nn.Linear(4, width), nn.Linear(width, 4)

        def forward(self, x: Tensor) -> Tensor:
            return x + self.down(self.up(x).relu())

    class Chain(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.blocks = nn.ModuleList(Block(width) for width in (3, 9, 3, 5, 3))

        def forward(self, x: Tensor) -> Tensor:
            for block in self.blocks:
                x = block(x)
            return x

    network, x = Chain(), torch.randn(2, 4)
    expected = network(x)
    stream = Stream(network, CPU)
    with torch.no_grad():
        assert torch.equal(network(x), expected)
    assert stream.loads == 5
