"""The search for the borders of weighted clusters, given prefix sums of every sorted row."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from functools import partial
from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import pad

Map = Callable[[Callable[[Tensor], Any], Any], Any]

# How far borders may move in one sweep, down and up, in shares of the cluster beside them. The
# share 1 puts a border on its neighbour, so a sweep can merge two clusters and split another;
# those in between then move by every share, and all in one direction.
_COARSE = (0.03, *(i / 8 for i in range(1, 9)))
_FINE = tuple(i / 40 for i in range(1, 41))
_STAGES: tuple[tuple[tuple[float, ...], ...], ...] = ((_COARSE, _COARSE), ((), _FINE), (_FINE, ()))
_ROUNDS = 50  # of a stage; rows that no longer improve drop out, most after 1 to 5
_CPU_PAIRS = 2**18  # weighed at once: what stays in its cache
_GPU_PAIRS = 2**25  # enough to outlast the launch of an operation; half a gigabyte
_TINY = 1e-15  # rounding error of the prefix sums: keeps empty clusters from dividing 0 by 0


@contextmanager
def slice_map(device: torch.device) -> Iterator[Map]:
    """A ``map`` over slices with a thread per core: splitting each of the small ops is slower."""
    threads = torch.get_num_threads()
    if device.type != "cpu" or threads == 1:
        yield map
        return
    try:
        with ThreadPoolExecutor(threads, initializer=torch.set_num_threads, initargs=(1,)) as pool:
            yield pool.map
    finally:
        torch.set_num_threads(threads)  # the workers' setting is the default of later threads


class BorderSearch:
    """Ever better borders of the rows' clusters, by dynamic programming over candidates.

    Args:
        sums: (2, rows, n + 1) float64, the prefix sums of w and of w x.
        count: (rows,) distinct values; borders lie from 0 to ``count``.
        borders: (borders, rows) to start from, ascending.
        run: from ``slice_map``.
    """

    def __init__(self, sums: Tensor, count: Tensor, borders: Tensor, run: Map) -> None:
        self.sums, self.count, self.borders, self.run = sums, count, borders, run
        self.gain = sums.new_full((len(count),), -torch.inf)

    def anywhere(self, rows: Tensor, grid: Tensor) -> None:
        """The best borders among those in the ``grid`` (m, all rows), of the given rows."""
        borders = len(self.borders)
        self._sweep(rows, len(grid), lambda r: grid[:, r].expand(borders, -1, -1), shared=True)

    def nearby(self, rows: Tensor) -> None:
        """Move the borders of the given rows between their neighbours until nothing improves."""
        for stage in _STAGES:
            shares = [self.sums.new_tensor(way)[:, None] for way in stage]
            m = sum(map(len, shares)) + 3
            active = rows
            for _ in range(_ROUNDS):
                active = self._sweep(active, m, partial(self._around, down=shares[0], up=shares[1]))
                if len(active) == 0:
                    break

    def _around(self, rows: Tensor, down: Tensor, up: Tensor) -> Tensor:
        """Candidates (borders, m, rows) for moving every border as far as its neighbours."""
        here = self.borders[:, rows]
        low, high = pad(here[:-1], (0, 0, 1, 0)), torch.cat((here[1:], self.count[None, rows]))
        low, here, high = (t[:, None] for t in (low, here, high))
        lower = here - (down * (here - low)).round_().long()
        upper = here + (up * (high - here)).round_().long()
        return torch.cat((lower, here - 1, here, here + 1, upper), 1).clamp(low, high)

    def _sweep(
        self, rows: Tensor, m: int, candidates: Callable[[Tensor], Tensor], shared: bool = False
    ) -> Tensor:
        """Take the best of m candidates per border; returns the rows that this has improved."""
        pairs = _GPU_PAIRS if self.sums.is_cuda else _CPU_PAIRS
        slices = torch.split(rows, max(1, pairs // (m * max(m, len(self.borders)))))
        found = self.run(lambda part: self._best(part, candidates(part), shared), slices)
        borders, gain = (torch.cat(parts, -1) for parts in zip(*found, strict=True))
        better = (gain > self.gain[rows]).nonzero().squeeze(1)
        rows = rows[better]
        self.borders[:, rows], self.gain[rows] = borders[:, better], gain[better]
        return rows

    def _best(self, part: Tensor, candidates: Tensor, shared: bool) -> tuple[Tensor, Tensor]:
        """Dynamic programming over the candidates (borders, m, rows) of each border.

        As sum w x^2 is fixed, the cost is least where the gain, sum (sum w x)^2 / sum w over the
        clusters, is largest. Candidates from ``_around`` lie between the old neighbours, where
        stepping back never pays; ``shared`` ones, the same for every border, must be kept from
        it. Returns ascending borders (borders, rows) and the gain (rows).
        """
        borders, m, rows = candidates.shape
        start = self.sums.flatten(1)[:, candidates + part * self.sums.shape[2]]
        end = torch.stack((start[0] + _TINY, start[1]))

        gains = [end[1, 0].square().div_(end[0, 0])]  # the best up to each candidate of border j
        pair = start.new_empty(2, m, m, rows)
        mass, moment = pair.unbind()
        for j in range(1, borders):
            if j == 1 or not shared:
                torch.sub(end[:, j, None], start[:, j - 1, :, None], out=pair)
                moment.square_()
            if j == 1 and shared:
                moment.div_(mass).masked_fill_(mass < 0, -torch.inf)
            before = gains[-1][:, None]
            if shared:
                total = torch.add(before, moment, out=mass)
            else:
                total = torch.addcdiv(before, moment, mass, out=mass)
            gains.append(total.amax(0))

        picks, gain = [], start.new_empty(0)
        last = self.sums[:, part, -1:].mT.clone()
        last[0] += _TINY
        for j in reversed(range(borders)):
            mass, moment = last - start[:, j]
            total = torch.addcdiv(gains[j], moment.square_(), mass)
            if shared:
                total.masked_fill_(mass < 0, -torch.inf)
            best, pick = total.max(0, keepdim=True)
            gain = best[0] if j == borders - 1 else gain
            picks.append(pick)
            last = end[:, j].gather(1, pick.expand(2, 1, -1))
        found = candidates.gather(1, torch.stack(picks[::-1])).squeeze(1)
        # Sorting matters only among ties, where a border may have stepped back at no cost.
        return found.sort(0).values, gain
