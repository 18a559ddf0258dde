"""The few types that flow from stage to stage."""

from __future__ import annotations

from npft.artifacts.model import LanguageModel, LinearLayer, Outliers
from npft.artifacts.power import PowerWeight, raised
from npft.artifacts.quantized import QuantizedModel, label
from npft.artifacts.report import Channel, Report, Row, Sensitivity, StepLoss
from npft.artifacts.weights import CodebookWeight, PackedWeight, SparsePart, UniformWeight

__all__ = [
    "Channel",
    "CodebookWeight",
    "LanguageModel",
    "LinearLayer",
    "Outliers",
    "PackedWeight",
    "PowerWeight",
    "QuantizedModel",
    "Report",
    "Row",
    "Sensitivity",
    "SparsePart",
    "StepLoss",
    "UniformWeight",
    "label",
    "raised",
]
