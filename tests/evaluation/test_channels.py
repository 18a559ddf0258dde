"""Channels of outliers, found and unfolded by hand."""

from __future__ import annotations

import torch
from recording import some
from tiny import tiny_model

from npft.artifacts import Outliers
from npft.evaluation.channels import Channel, Watch, fullest_channels, unfold


def test_the_fullest_channel_of_each_kind() -> None:
    """Positions 3, 35 and 67 share input 3 of 32; 5 and 69 share input 5 of 64."""
    model = tiny_model()
    attention, other = [n for n, layer in model.layers.items() if layer.kind == "attention"][:2]
    mlp = next(name for name in model.layers if name.endswith("down_proj"))
    outliers = {
        attention: Outliers((32, 32), torch.tensor([0, 3, 4, 35, 67])),
        other: Outliers((16, 32), torch.tensor([7, 39])),
        mlp: Outliers((32, 64), torch.tensor([5, 69, 70])),
    }
    assert fullest_channels(model, outliers) == [Channel(attention, 3), Channel(mlp, 5)]
    del outliers[mlp]
    assert fullest_channels(model, outliers) == [Channel(attention, 3)]
    assert fullest_channels(model, {mlp: Outliers((32, 64), None)}) == [Channel(mlp, 0)]


def test_unfolding_gives_output_channels_and_scores() -> None:
    scores = torch.arange(12.0).view(4, 3)
    rows, values = unfold(scores, Outliers((4, 3), torch.tensor([1, 2, 4, 10])), 1)
    assert rows.tolist() == [0, 1, 3]
    assert values.tolist() == [1, 4, 10]
    rows, values = unfold(scores, Outliers((4, 3), None), 2)
    assert rows.tolist() == [0, 1, 2, 3]
    assert values.tolist() == [2, 5, 8, 11]


def test_watching_keeps_its_channels_and_passes_all_on() -> None:
    model = tiny_model()
    outliers = some(model)
    scores = {n: torch.rand(found.shape) for n, found in outliers.items()}
    channels = fullest_channels(model, outliers)
    watch = Watch(channels, outliers)
    assert dict(watch.pass_on(iter(scores.items()))) == scores
    assert list(watch.seen) == channels
    for channel, (rows, values) in watch.seen.items():
        assert torch.equal(scores[channel.layer][rows, channel.input], values)
        assert len(rows) > 1
