"""How long SqueezeLLM's clustering of a whole model takes.

    python benchmarks/kmeans.py --model MODEL [--clusters 16]
    python benchmarks/kmeans.py --shape llama-2-7b --device cuda [--clusters 16]

Clusters every linear layer of a model, weighted by sensitivities, or random matrices of a model's
shapes with random weights, one matrix of each shape and multiplied by how often it occurs (or all
of them, with --whole). Prints a line per shape and the sum; one JSON object with --json. How far it
is from the exact solution is tested in tests/quantizers/test_kmeans_1d.py.
"""

from __future__ import annotations

import argparse
import json
import time
from collections import Counter

import torch
from torch import Tensor

from npft import models
from npft.quantizers.kmeans_1d import weighted_kmeans_1d

LLAMA_2_7B = Counter({(4096, 4096): 4 * 32, (11008, 4096): 2 * 32, (4096, 11008): 32})


def seconds_for(weight: Tensor, importance: Tensor, clusters: int) -> float:
    """Wall-clock time of one matrix."""
    if weight.is_cuda:
        torch.cuda.synchronize()
    start = time.perf_counter()
    _, codes = weighted_kmeans_1d(weight, importance, clusters)
    codes[0, 0].item()  # waits for the device
    return time.perf_counter() - start


def random_matrix(shape: tuple[int, int], device: str, seed: int) -> tuple[Tensor, Tensor]:
    """Normal weights, and sensitivities over several orders of magnitude, as Fisher's are."""
    random = torch.Generator(device).manual_seed(seed)
    weight = torch.randn(shape, generator=random, device=device) * 0.02
    return weight, torch.randn(shape, generator=random, device=device).exp() ** 2


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    what = parser.add_mutually_exclusive_group(required=True)
    what.add_argument("--model")
    what.add_argument("--shape", choices=["llama-2-7b"])
    parser.add_argument("--clusters", type=int, default=16)
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--whole", action="store_true")
    parser.add_argument("--json", action="store_true")
    args = parser.parse_args()
    rows = []
    if args.model:
        layers = models.load(args.model, device=args.device).layers
        matrices: dict[tuple[int, int], list[Tensor]] = {}
        for layer in layers.values():
            matrices.setdefault((layer.out_features, layer.in_features), []).append(layer.weight)
        for shape, weights in matrices.items():
            _, importance = random_matrix(shape, args.device, 0)
            took = sum(seconds_for(w.float(), importance, args.clusters) for w in weights)
            rows.append({"shape": shape, "count": len(weights), "seconds": took})
    else:
        seconds_for(*random_matrix((64, 4096), args.device, 0), args.clusters)  # starts the device
        for shape, count in LLAMA_2_7B.items():
            runs = count if args.whole else 2
            made = (random_matrix(shape, args.device, seed) for seed in range(runs))
            took = sum(seconds_for(*matrix, args.clusters) for matrix in made) * count / runs
            rows.append({"shape": shape, "count": count, "measured": runs, "seconds": took})
            if not args.json:
                print(rows[-1], flush=True)
    total = sum(row["seconds"] for row in rows)
    if args.json:
        print(json.dumps({"clusters": args.clusters, "rows": rows, "seconds": total}))
    else:
        print(f"{total:.1f} s for all, {args.clusters} clusters")


if __name__ == "__main__":
    main()
