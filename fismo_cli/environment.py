"""What a result depends on besides the preset: versions, hardware, threads, determinism settings and the git commit.

Versions come from package metadata, so that only torch has to be imported.
"""

import os
import platform
import subprocess
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

__all__ = ["PACKAGES", "environment", "gpu_count", "run_threads", "usable_cores"]

PACKAGES = (
    "fismo",
    "torch",
    "torchvision",
    "timm",
    "transformers",
    "optuna",
    "pytorch-optimizer",
    "numpy",
    "scikit-learn",
    "datasets",
)


def environment() -> dict[str, Any]:
    """Everything above as one JSON-able object; what cannot be found out is None."""
    import torch

    return {
        "versions": {"python": platform.python_version(), **{name: _version(name) for name in PACKAGES}},
        "system": platform.platform(),
        "cpu": {
            "model": _cpu_model(),
            "cores": os.cpu_count(),
            "usable_cores": usable_cores(),
            "capability": torch.backends.cpu.get_cpu_capability(),
            "memory_bytes": _memory_bytes(),
        },
        "gpus": _gpus(torch),
        "mps": torch.backends.mps.is_available(),
        "cuda": torch.version.cuda,
        "bfloat16": {"cpu": _fast_bfloat16_cpu(torch), "cuda": _bfloat16_cuda(torch)},
        "threads": {"intra_op": torch.get_num_threads(), "inter_op": torch.get_num_interop_threads()},
        "determinism": {
            "deterministic_algorithms": torch.are_deterministic_algorithms_enabled(),
            "cudnn_deterministic": torch.backends.cudnn.deterministic,
            "cudnn_benchmark": torch.backends.cudnn.benchmark,
            "float32_matmul_precision": torch.get_float32_matmul_precision(),
        },
        "git": _git(),
    }


def _version(name: str) -> str | None:
    try:
        return version(name)
    except PackageNotFoundError:
        return None


def _cpu_model() -> str | None:
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8", errors="replace").splitlines()
    except OSError:
        return _output("sysctl", "-n", "machdep.cpu.brand_string") or platform.processor() or None
    models = (line.partition(":")[2].strip() for line in lines if line.startswith("model name"))
    return next(models, platform.machine())


def gpu_count() -> int:
    """CUDA devices that this process may use."""
    import torch

    return torch.cuda.device_count()


def usable_cores() -> int | None:
    """Cores that this process may run on; a container or a batch system may give it fewer than there are."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()


def run_threads(asked: int | None, variable: str | None, processes: int) -> int:
    """CPU threads of each of several processes side by side.

    Args:
        asked: by the preset (`train.threads`), which goes first.
        variable: what OMP_NUM_THREADS says; of a list, the first counts, as outside nested regions. It goes second.
        processes: how many there are; without either of the above, each has its share of the cores.
    """
    first = (variable or "").partition(",")[0].strip()
    given = int(first) if first.isdecimal() else 0
    return asked or given or max(1, (usable_cores() or 1) // processes)


def _memory_bytes() -> int | None:
    try:
        return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    except (AttributeError, ValueError, OSError):
        return None


def _gpus(torch: Any) -> list[dict[str, Any]]:
    if not torch.cuda.is_available():
        return []
    properties = (torch.cuda.get_device_properties(index) for index in range(torch.cuda.device_count()))
    return [
        {"name": gpu.name, "memory_bytes": gpu.total_memory, "capability": f"{gpu.major}.{gpu.minor}"}
        for gpu in properties
    ]


def _fast_bfloat16_cpu(torch: Any) -> bool | None:
    """Whether the CPU multiplies bfloat16 in hardware; None where torch does not say."""
    checks = [getattr(torch.cpu, name, None) for name in ("_is_avx512_bf16_supported", "_is_amx_tile_supported")]
    answers = [bool(check()) for check in checks if check is not None]
    return any(answers) if answers else None


def _bfloat16_cuda(torch: Any) -> bool | None:
    return bool(torch.cuda.is_bf16_supported(including_emulation=False)) if torch.cuda.is_available() else None


def _git() -> dict[str, Any] | None:
    """The commit of the checkout that fismo runs from; None for an installed package."""
    folder = Path(__file__).resolve().parents[1]
    if not (folder / ".git").exists():
        return None
    commit = _output("git", "-C", str(folder), "rev-parse", "HEAD")
    status = _output("git", "-C", str(folder), "status", "--porcelain")
    return None if commit is None else {"commit": commit, "dirty": bool(status)}


def _output(*command: str) -> str | None:
    try:
        done = subprocess.run(command, capture_output=True, encoding="utf-8", timeout=10, check=True)
    except (OSError, subprocess.SubprocessError):
        return None
    return done.stdout.strip()
