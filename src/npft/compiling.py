"""torch.compile for the decoder blocks, one compiled function for all that are alike."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from npft.artifacts import LanguageModel
from npft.errors import NpftError
from npft.streaming import find_blocks


@contextmanager
def compiled(model: LanguageModel) -> Iterator[None]:
    """Within this scope the decoder blocks run as torch.compile makes them of their code.

    Losses are those of the plain blocks up to rounding. The first passes take a minute or more.

    Raises:
        NpftError: the model is streamed, whose blocks change places between passes.
    """
    if model.stream is not None:
        raise NpftError("tuning.compile needs a resident model: leave it out, or --memory resident")
    blocks = list(find_blocks(model.network)[1])
    for block in blocks:
        block.compile(dynamic=False)
    try:
        yield
    finally:
        for block in blocks:
            block._compiled_call_impl = None
