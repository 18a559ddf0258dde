"""Timing on a GPU: CUDA graphs, events, medians; and what memory can deliver."""

from __future__ import annotations

import ctypes
import itertools
import statistics
from collections.abc import Callable
from dataclasses import dataclass

import torch

from npft.packed import nvrtc


@dataclass(frozen=True)
class Times:
    """Repeated measurements, in milliseconds."""

    each: tuple[float, ...]

    @property
    def median(self) -> float:
        return statistics.median(self.each)

    @property
    def spread(self) -> tuple[float, float]:
        """The least and the greatest."""
        return min(self.each), max(self.each)


def captured(work: Callable[[], object]) -> Callable[[], None]:
    """``work`` as a replay of a CUDA graph, after one run of it."""
    stream = torch.cuda.Stream()
    stream.wait_stream(torch.cuda.current_stream())
    with torch.inference_mode():
        with torch.cuda.stream(stream):
            work()
        torch.cuda.synchronize()
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph):
            work()
    return graph.replay


def graph_replays(work: Callable[[], object], repeats: int) -> Times:
    """Each replay of ``work`` captured as a CUDA graph, after one run and two replays."""
    return runs(captured(work), repeats)


def runs(work: Callable[[], object], repeats: int) -> Times:
    """Each run of ``work``, after two, with as much of Python's time as the GPU has to wait for."""
    for _ in range(2):
        work()
    marks = [torch.cuda.Event(enable_timing=True) for _ in range(repeats + 1)]
    marks[0].record()
    for mark in marks[1:]:
        work()
        mark.record()
    torch.cuda.synchronize()
    return Times(tuple(a.elapsed_time(b) for a, b in itertools.pairwise(marks)))


class _Read(ctypes.Structure):
    _fields_ = (
        ("from", ctypes.c_void_p),
        ("sink", ctypes.c_void_p),
        ("count", ctypes.c_longlong),
    )


def read_bandwidth(gigabytes: float = 4.0, repeats: int = 9) -> float:
    """Bytes per second that a kernel which only reads gets from memory: the best of several."""
    size = int(gigabytes * 2**30) // 16 * 16
    data = torch.empty(size // 8, dtype=torch.int64, device="cuda").random_()
    sink = torch.zeros(1, dtype=torch.int32, device="cuda")
    device = torch.cuda.current_device()
    kernel = nvrtc.kernel("bandwidth.cu", "read_all", (), device)
    blocks = 4 * torch.cuda.get_device_properties(device).multi_processor_count
    arguments = _Read(data.data_ptr(), sink.data_ptr(), size // 16)
    times = graph_replays(lambda: kernel.launch(arguments, (blocks,), 512), repeats)
    return size / (min(times.each) / 1e3)
