"""What is slow on this machine, or will go wrong, and what to do: of a preset and of the machine alone."""

import importlib.util
import os
import shutil
import sys
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from fismo_cli.files import nearest_existing
from fismo_cli.preset.files import missing_files
from fismo_cli.preset.schema import ImagePreset, Preset

__all__ = ["Advice", "advice_for", "gravest"]

Severity = Literal["stops", "slow", "note"]

LEAST_DISK, LEAST_SHARED = 2 << 30, 1 << 30
MANY_CORES = 4


@dataclass(frozen=True)
class Advice:
    """One thing to know, as a sentence.

    Attributes:
        severity: stops: the preset cannot run here. slow: it takes longer than it must. note: it may matter.
        text: What it is, and what to do.
    """

    severity: Severity
    text: str


def advice_for(preset: Preset | None, found: Mapping[str, Any], folder: Path) -> list[Advice]:
    """All that there is to say, the gravest first.

    Args:
        preset: What is to be run; None: only what is true of the machine.
        found: The machine, as `environment` has it.
        folder: Where runs are written.
    """
    found_advice = [*_of_machine(found, folder), *([] if preset is None else _of_preset(preset, found))]
    order: list[Severity] = ["stops", "slow", "note"]
    return sorted(found_advice, key=lambda advice: order.index(advice.severity))


def gravest(preset: Preset, found: Mapping[str, Any]) -> str | None:
    """What a run should say before it begins: the first thing that makes it slow; None if nothing does."""
    slow = (advice.text for advice in _of_preset(preset, found) if advice.severity == "slow")
    return next(slow, None)


def _of_machine(found: Mapping[str, Any], folder: Path) -> Iterator[Advice]:
    if found["cuda"] and not found["gpus"]:
        yield Advice("note", "torch is built for CUDA, and no GPU is seen: everything runs on the CPU")
    existing = nearest_existing(folder)
    free = shutil.disk_usage(existing).free
    if free < LEAST_DISK:
        yield Advice("note", f"{existing} has {free / 2**30:.1f} GiB left; models and checkpoints need room")
    if sys.getfilesystemencoding() != "utf-8":
        yield Advice("note", f"file names are {sys.getfilesystemencoding()} here, not UTF-8: set PYTHONUTF8=1")


def _of_preset(preset: Preset, found: Mapping[str, Any]) -> Iterator[Advice]:
    for path, message in missing_files(preset):
        yield Advice("stops", f"{'.'.join(path)}: {message}")
    logging = preset.logging
    for needed, module, extra in (
        (preset.data.source == "huggingface", "datasets", "hub"),
        (logging.tensorboard, "tensorboard", "tensorboard"),
        (preset.model.lora is not None, "peft", "lora"),
        *((getattr(logging, name) is not None, name, name) for name in ("wandb", "mlflow", "trackio")),
    ):
        if needed and importlib.util.find_spec(module) is None:
            yield Advice("stops", f'{module} is not installed: pip install "fismo[{extra}]"')
    yield from _of_device(preset, found)
    yield from _of_workers(preset, found)


def _of_device(preset: Preset, found: Mapping[str, Any]) -> Iterator[Advice]:
    train, gpus = preset.train, len(found["gpus"])
    device = train.device
    if device == "auto":
        device = "cuda" if gpus else "mps" if found["mps"] else "cpu"
    if device.startswith("cuda") and gpus <= int(device.partition(":")[2] or 0):
        yield Advice("stops", f"train.device={train.device}: this machine has {gpus} CUDA devices; use auto")
    if device == "mps" and not found["mps"]:
        yield Advice("stops", "train.device=mps: this machine has no MPS device; use auto")
    kind = "cuda" if device.startswith("cuda") else device
    if train.precision == "bfloat16" and found["bfloat16"].get(kind) is False:
        where = "GPU" if kind == "cuda" else "CPU"
        yield Advice("slow", f"train.precision=bfloat16: this {where} has no fast bfloat16; use float32")
    if train.precision == "float16" and kind == "cpu":
        yield Advice("slow", "train.precision=float16: slow on a CPU; use float32")
    cores, threads = found["cpu"]["usable_cores"] or 1, train.threads or found["threads"]["intra_op"]
    if kind == "cpu" and threads == 1 and cores >= MANY_CORES:
        yield Advice("slow", f"1 of {cores} CPU cores is used: set train.threads, or OMP_NUM_THREADS")


def _of_workers(preset: Preset, found: Mapping[str, Any]) -> Iterator[Advice]:
    workers, cores = preset.data.workers, found["cpu"]["usable_cores"] or 1
    from_files = isinstance(preset, ImagePreset) and preset.data.source in ("image-folder", "huggingface")
    if from_files and workers == 0 and cores > 1:
        more = min(4, cores)
        yield Advice("slow", f"data.workers=0: the training process reads the images itself; try data.workers={more}")
    shared = Path("/dev/shm")
    if workers > 0 and shared.is_dir():
        status = os.statvfs(shared)
        size = status.f_frsize * status.f_blocks
        if size < LEAST_SHARED:
            yield Advice(
                "note",
                f"data.workers={workers} with {size / 2**20:.0f} MiB of shared memory (/dev/shm): where loaders die by "
                "a bus error, give the container more (docker run --shm-size=8g)",
            )
