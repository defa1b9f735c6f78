"""The device a run uses: choice, mixed precision, copies, memory and the clock of the optimizer. Knows no presets."""

import re
import resource
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from typing import Any, Literal

import torch

from fismo_cli.errors import FismoError, UsageError
from fismo_cli.preset.schema import DEVICES
from fismo_cli.tasks.base import Batch

__all__ = ["OptimizerClock", "autocast", "choose_device", "explain_memory", "move", "peak_memory_bytes"]

Precision = Literal["float32", "bfloat16", "float16"]


def choose_device(name: str, index: int | None = None, *, key: str = "train.device=") -> torch.device:
    """The device of a name; `auto` is cuda, else mps, else cpu.

    Args:
        name: auto, cpu, mps, cuda or cuda:N.
        index: of the process among those on this host that train together: each takes a CUDA device of its own.
        key: what the user wrote before the name.

    Raises:
        UsageError: if there is no such device, or processes would share one.
    """
    if not re.fullmatch(DEVICES, name):
        raise UsageError(f"{key}{name}: must be auto, cpu, mps, cuda or cuda:N")
    if name == "auto":
        if torch.cuda.is_available():
            name = "cuda"
        else:
            name = "mps" if torch.backends.mps.is_available() else "cpu"
    device = torch.device(name)
    if index is not None and device.type == "mps":
        raise UsageError("several processes cannot train together on an MPS device; use train.device=cpu")
    if index is not None and device.type == "cuda":
        if device.index is not None:
            raise UsageError(
                f"train.device={name}: each of several processes takes a device of its own; say cuda or auto"
            )
        device = torch.device("cuda", index)
        name = f"cuda:{index}"
    if device.type == "cuda":
        count = torch.cuda.device_count() if torch.cuda.is_available() else 0
        if (device.index or 0) >= count:
            raise UsageError(f"{key}{name}: this machine has {count} CUDA device(s); use {key}auto")
        if device.index is not None:
            torch.cuda.set_device(device)
    if device.type == "mps" and not torch.backends.mps.is_available():
        raise UsageError(f"{key}mps: this machine has no MPS device; use {key}auto")
    return device


def autocast(device: torch.device, precision: Precision) -> AbstractContextManager[Any]:
    """Automatic mixed precision on the device; a context that does nothing for float32."""
    if precision == "float32":
        return nullcontext()
    return torch.autocast(device.type, dtype=getattr(torch, precision))


def move(batch: Batch, device: torch.device) -> Batch:
    """The batch on the device; the copy does not wait where the tensors are in page-locked memory."""
    if device.type == "cpu":
        return batch
    return {name: value.to(device, non_blocking=True) for name, value in batch.items()}


def peak_memory_bytes(device: torch.device) -> int:
    """The most memory used so far: of the CUDA device's allocator, elsewhere of the whole process."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device)
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else peak * 1024  # macOS counts in bytes, Linux in KiB


@contextmanager
def explain_memory(device: torch.device, advice: Callable[[], str]) -> Iterator[None]:
    """Turn torch's report of full memory into a sentence that says what to change.

    Raises:
        FismoError: where torch ran out of memory; `advice` is asked only then.
    """
    try:
        yield
    except (RuntimeError, MemoryError) as error:
        # Only CUDA has an exception of its own for it.
        words = ("not enough memory", "out of memory", "can't allocate memory")
        known = isinstance(error, torch.OutOfMemoryError | MemoryError)
        if not known and not any(word in str(error) for word in words):
            raise
        raise FismoError(f"{device} ran out of memory {advice()}") from error


class OptimizerClock:
    """Seconds spent in the optimizer's step; on CUDA by events, which never make the host wait for the device."""

    def __init__(self, device: torch.device) -> None:
        self._cuda = device.type == "cuda"
        self._seconds = 0.0
        self._started = 0.0
        self._pairs: list[tuple[torch.cuda.Event, torch.cuda.Event]] = []

    def __enter__(self) -> None:
        if self._cuda:
            pair = (_cuda_event(), _cuda_event())
            pair[0].record()
            self._pairs.append(pair)
        else:
            self._started = time.perf_counter()

    def __exit__(self, *exception: object) -> None:
        if self._cuda:
            self._pairs[-1][1].record()
        else:
            self._seconds += time.perf_counter() - self._started

    def start_at(self, seconds: float) -> None:
        """Go on from what a resumed run had measured."""
        self._seconds = seconds

    def read(self) -> float:
        """Seconds so far. On CUDA this waits for the last step: call it only where the host waits anyway."""
        if self._pairs:
            self._pairs[-1][1].synchronize()
            self._seconds += sum(start.elapsed_time(end) for start, end in self._pairs) / 1000
            self._pairs.clear()
        return self._seconds


def _cuda_event() -> torch.cuda.Event:
    return torch.cuda.Event(enable_timing=True)  # type: ignore[no-untyped-call]
