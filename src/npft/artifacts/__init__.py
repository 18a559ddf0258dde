"""The few types that flow from stage to stage."""

from __future__ import annotations

from npft.artifacts.model import LanguageModel, LinearLayer, Outliers
from npft.artifacts.power import PowerWeight, raised
from npft.artifacts.quantized import QuantizedModel, label
from npft.artifacts.report import Report, Row, StepLoss
from npft.artifacts.weights import CodebookWeight, PackedWeight, SparsePart, UniformWeight

__all__ = [
    "CodebookWeight",
    "LanguageModel",
    "LinearLayer",
    "Outliers",
    "PackedWeight",
    "PowerWeight",
    "QuantizedModel",
    "Report",
    "Row",
    "SparsePart",
    "StepLoss",
    "UniformWeight",
    "label",
    "raised",
]
