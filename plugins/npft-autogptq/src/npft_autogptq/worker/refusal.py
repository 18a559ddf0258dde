"""What this backend refuses to do, told in one sentence."""

from __future__ import annotations


class Refusal(Exception):
    """A model that cannot be quantized here; the text is for the user."""
