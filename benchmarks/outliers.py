"""Where the cube root beats rounding to nearest, and where not: outliers planted in a model.

    python benchmarks/outliers.py --model MODEL --text TEXT [--windows 4] [--context 256] [--json]

In every block one channel of the normalised activations is made SIZE times as large, and the
columns that read it as much smaller, so that the float function stays the same. Weights alone
(W4A16, W8A16) and with them each token's activations (W8A8) are quantized by simulation, per output
channel and per token. Prints KL to the float model, in nats per token. The model must be of the
Llama family.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Iterator
from contextlib import nullcontext

import torch
from torch import Tensor

from npft import data, models
from npft.artifacts import LanguageModel
from npft.contracts import Quantizer
from npft.evaluation.quality import Original, evaluate
from npft.lens import residuals
from npft.lens.applying import Seen, on_activations, on_weights
from npft.quantizers import RTN, Nonuniform

CHANNEL = 5


def plant(model: LanguageModel, size: float) -> LanguageModel:
    """Make one channel of what attention and MLP read ``size`` times as large, in place."""
    with torch.no_grad():
        for block in model.network.model.layers:
            attention, mlp = block.self_attn, block.mlp
            for norm, readers in (
                (block.input_layernorm, (attention.q_proj, attention.k_proj, attention.v_proj)),
                (block.post_attention_layernorm, (mlp.gate_proj, mlp.up_proj)),
            ):
                norm.weight[CHANNEL] *= size
                for reader in readers:
                    reader.weight[:, CHANNEL] /= size
    return model


def cost(
    model: LanguageModel, original: Original, quantizer: Quantizer, *, activations: bool
) -> float:
    """KL of the quantized model; ``model`` gets its weights back."""
    stored = residuals.stored(residuals.of_weights(model, quantizer, [], None), None)
    tokens = residuals.of_tokens(quantizer, None)
    inputs = on_activations(model, tokens, Seen()) if activations else nullcontext()
    with on_weights(model, stored, Seen()), inputs:
        return evaluate(model, original).kl


def measured(
    model: LanguageModel, windows: Tensor, size: float
) -> Iterator[dict[str, str | float]]:
    """A row for each quantizer, with and without activations."""
    plant(model, size)
    original, copy = Original(model, windows), model.copy()
    for bits, activations in ((4, False), (8, False), (8, True)):
        root, searched = Nonuniform(bits=bits), Nonuniform(bits=bits, search=True)
        for quantizer in (RTN(bits=bits), root, searched):
            setting = f"W{bits}A{8 if activations else 16}"
            kl = cost(copy, original, quantizer, activations=activations)
            yield {"size": size, "setting": setting, "quantizer": quantizer.label, "kl": kl}
    plant(model, 1 / size)


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--model", required=True)
    parser.add_argument("--text", required=True)
    parser.add_argument("--windows", type=int, default=4)
    parser.add_argument("--context", type=int, default=256)
    parser.add_argument("--sizes", type=float, nargs="+", default=[1, 16, 128])
    parser.add_argument("--device", default="auto")
    parser.add_argument("--json", action="store_true")
    args = parser.parse_args()
    model = models.load(args.model, device=args.device, dtype="float32")
    text = data.load_text(args.text, "held-back")
    windows = data.windows(model.tokenizer, text, args.context, args.text)[: args.windows]
    rows = []
    for size in args.sizes:
        for row in measured(model, windows, size):
            rows.append(row)
            if not args.json:
                print("{size:>6g}  {setting}  {quantizer:<20}  {kl:.5f}".format(**row), flush=True)
    if args.json:
        print(json.dumps(rows, indent=2))


if __name__ == "__main__":
    main()
