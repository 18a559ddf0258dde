"""The decoder's steps against transformers: emulated on the CPU, and on a GPU if there is one."""

from __future__ import annotations

import copy
from collections.abc import Callable

import emulated
import pytest
import torch
from packed_samples import relative_error
from tiny import tiny_model

from npft.artifacts import LanguageModel
from npft.errors import NpftError
from npft.packed import gemv, nvrtc
from npft.packed.decoder import Decoder, take_apart
from npft.packed.model import pack_model
from npft.quantizers.rtn import RTN


class EmulatedDecoder(Decoder):
    """Runs the same launches one by one, without a graph."""

    def _capture(self) -> Callable[[], None]:
        return self._step


def model(architecture: str, dtype: torch.dtype, device: str = "cpu") -> LanguageModel:
    made = tiny_model(architecture, hidden_size=128, intermediate_size=192, head_dim=32)
    made.network.to(device=device, dtype=dtype)
    return made


def logits(network: torch.nn.Module, tokens: torch.Tensor) -> torch.Tensor:
    """Those of the same weights in float32, whose own rounding does not count."""
    exact = copy.deepcopy(network).float()
    with torch.inference_mode():
        return exact(tokens[None].to(next(exact.parameters()).device)).logits[0].cpu()


def check(decoder: Decoder, network: torch.nn.Module) -> None:
    tokens = torch.randint(256, (12,), generator=torch.Generator().manual_seed(0))
    decoder.reset()
    found = torch.cat([decoder.feed(int(token)).float().cpu() for token in tokens])
    wanted = logits(network, tokens)
    assert relative_error(found, wanted) < 4e-3
    new = decoder.generate(tokens[:3], 5)
    whole = torch.cat((tokens[:3], new.cpu()))
    after = logits(network, whole[:-1])[2:]
    behind = after.amax(1) - after.gather(1, new.cpu()[:, None])[:, 0]
    rounding = (found - wanted).abs().max()
    assert (behind <= 2 * rounding).all()  # the best token, but for what rounding decides


@pytest.fixture
def emulation(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(nvrtc, "kernel", emulated.kernel)
    monkeypatch.setattr(gemv, "supported", lambda weight: True)
    monkeypatch.setattr(gemv, "shape_for", lambda weight: gemv.Shape(4, 1))


@emulated.needs_compiler
@pytest.mark.parametrize("architecture", ["Llama", "Mistral", "Qwen2"])
def test_float_network(emulation: None, architecture: str) -> None:
    network = model(architecture, torch.float16).network
    check(EmulatedDecoder(take_apart(network), 16), network)


@emulated.needs_compiler
def test_packed_network(emulation: None) -> None:
    quantized = RTN(bits=4).quantize(model("Llama", torch.float32), [])
    packed = pack_model(quantized)
    packed.network.half()
    quantized.model.network.half()
    check(EmulatedDecoder(take_apart(packed.network), 16), quantized.model.network)


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
def test_on_a_gpu() -> None:
    quantized = RTN(bits=4).quantize(model("Llama", torch.float32, "cuda"), [])
    packed = pack_model(quantized)
    packed.network.to("cuda", torch.float16)
    quantized.model.network.half()
    check(Decoder(take_apart(packed.network), 16), quantized.model.network)


def test_refusals() -> None:
    with pytest.raises(NpftError, match="not 'gpt2'"):
        take_apart(tiny_model("GPT2").network)
    network = model("Llama", torch.float32).network
    with pytest.raises(NpftError, match=r"needs a GPU and float16 or bfloat16, not torch\.float32"):
        Decoder(take_apart(network), 16)


@emulated.needs_compiler
def test_too_long(emulation: None) -> None:
    decoder = EmulatedDecoder(take_apart(model("Llama", torch.float16).network), 8)
    with pytest.raises(NpftError, match="3 tokens of prompt and 6 new ones"):
        decoder.generate(torch.tensor([1, 2, 3]), 6)
