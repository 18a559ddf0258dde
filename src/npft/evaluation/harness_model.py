"""A :class:`LanguageModel` as lm-evaluation-harness wants it; importing this needs the harness."""

from __future__ import annotations

import copy
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from lm_eval.api.model import CacheHook
from lm_eval.models.huggingface import HFLM

from npft.artifacts import LanguageModel
from npft.errors import NpftError
from npft.progress import Progress


class HarnessModel(HFLM):  # type: ignore[misc]
    """The harness's own Hugging Face model around a network in memory, on its device.

    Until :meth:`show` is called it draws the harness's bars.

    Args:
        model: the model; neither its weights nor its tokenizer are changed.
        batch_size: requests at once, or the harness's ``auto``.
        options: further ones of the harness's ``HFLM``.

    Raises:
        NpftError: the model has no tokenizer, or one that marks no beginning or end of text.
    """

    def __init__(self, model: LanguageModel, batch_size: int | str = 1, **options: Any) -> None:
        # The harness adds a padding token to the tokenizer that it is given.
        tokenizer = copy.deepcopy(model.tokenizer)
        if tokenizer is None or (tokenizer.bos_token_id is None and tokenizer.eos_token_id is None):
            raise NpftError(
                f"model {model.source!r} has no tokenizer with a token for the beginning or the "
                "end of a text, which tasks need: set its bos_token or eos_token"
            )
        super().__init__(
            pretrained=model.network, tokenizer=tokenizer, batch_size=batch_size, **options
        )
        self._progress: Progress | None = None
        self._label = ""

    def show(self, progress: Progress, label: str) -> None:
        """Show requests on ``progress`` instead of the harness's bars."""
        self._progress, self._label = progress, label

    def loglikelihood(self, requests: Any, disable_tqdm: bool = False) -> Any:
        with self._shown(len(requests)):
            return super().loglikelihood(requests, disable_tqdm or self._progress is not None)

    def loglikelihood_rolling(self, requests: Any, disable_tqdm: bool = False) -> Any:
        with self._shown(len(requests)):
            hide = disable_tqdm or self._progress is not None
            return super().loglikelihood_rolling(requests, hide)

    def generate_until(self, requests: Any, disable_tqdm: bool = False) -> Any:
        with self._shown(len(requests)):
            return super().generate_until(requests, disable_tqdm or self._progress is not None)

    def _loglikelihood_tokens(
        self, requests: Any, disable_tqdm: bool = False, override_bs: int | None = None
    ) -> Any:
        longest = self.max_length + 1
        cut = sum(len(context) + len(answer) > longest for _, context, answer in requests)
        if cut and self._progress is not None:
            self._progress.note(
                f"{self._label}: {cut} of {len(requests)} requests are longer than the model's "
                f"context of {self.max_length} tokens and lose their beginning"
            )
        hide = disable_tqdm or self._progress is not None
        return super()._loglikelihood_tokens(requests, hide, override_bs)

    @contextmanager
    def _shown(self, total: int) -> Iterator[None]:
        if self._progress is None:
            yield
            return
        before = self.cache_hook
        ticks = iter(self._progress.track(range(total), self._label, total))
        self.set_cache_hook(_Ticking(ticks))
        try:
            yield
            for _ in ticks:
                pass
        finally:
            self.set_cache_hook(before)
            close = getattr(ticks, "close", None)
            if close is not None:
                close()


class _Ticking(CacheHook):  # type: ignore[misc]
    """Told of every request that is answered, as the harness's cache would be."""

    def __init__(self, ticks: Iterator[int]) -> None:
        super().__init__(None)
        self._ticks = ticks

    def add_partial(self, attr: str, req: Any, res: Any) -> None:
        next(self._ticks, None)
