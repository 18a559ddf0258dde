"""Today's model configuration in the words of transformers 4.46.

That one skips keys it does not know, and fills in its own defaults without a word.
"""

from __future__ import annotations

from typing import Any


def translated(config: dict[str, Any]) -> dict[str, Any]:
    """A ``config.json`` that transformers 4.46 reads as it was meant.

    ``rope_parameters`` becomes ``rope_theta``, ``partial_rotary_factor`` and ``rope_scaling``,
    for GPT-NeoX ``rotary_emb_base`` and ``rotary_pct``; ``dtype`` becomes ``torch_dtype``.
    """
    old = {key: value for key, value in config.items() if key != "transformers_version"}
    if "dtype" in old:
        old["torch_dtype"] = old.pop("dtype")
    rope = old.pop("rope_parameters", None) or {}
    if "rope_theta" in rope:
        old["rope_theta"] = old["rotary_emb_base"] = rope["rope_theta"]
    if "partial_rotary_factor" in rope:
        old["partial_rotary_factor"] = old["rotary_pct"] = rope["partial_rotary_factor"]
    if rope.get("rope_type", "default") != "default":
        apart = ("rope_theta", "partial_rotary_factor")
        old["rope_scaling"] = {key: value for key, value in rope.items() if key not in apart}
    return old
