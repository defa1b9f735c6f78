"""The FISMO optimizer for PyTorch. Depends on torch alone, which is not imported before it is needed."""

import importlib
from typing import TYPE_CHECKING, Any

from fismo_core.config import DENSE, PAPER, AdamW, FisherMetric, FismoOptions, Polar

if TYPE_CHECKING:
    from fismo_core.decay import undecayed_parameters
    from fismo_core.diagnostics import MatrixDiagnostics, diagnose
    from fismo_core.groups import split_parameters
    from fismo_core.noise import Noise, NoiseMeter, fisher_square_norms, signal_and_noise
    from fismo_core.optimizer import FISMO
    from fismo_core.plan import Plan, PlanRow, plan_parameters
    from fismo_core.probe import StepProbe, StepReport
    from fismo_core.radius import AdaptiveRadius, RadiusControl
    from fismo_core.variance_reduction import Mars

__version__ = "0.1.0"

__all__ = [
    "DENSE",
    "FISMO",
    "PAPER",
    "AdamW",
    "AdaptiveRadius",
    "FisherMetric",
    "FismoOptions",
    "Mars",
    "MatrixDiagnostics",
    "Noise",
    "NoiseMeter",
    "Plan",
    "PlanRow",
    "Polar",
    "RadiusControl",
    "StepProbe",
    "StepReport",
    "diagnose",
    "fisher_square_norms",
    "plan_parameters",
    "signal_and_noise",
    "split_parameters",
    "undecayed_parameters",
]

_MODULES = {
    **dict.fromkeys(("MatrixDiagnostics", "diagnose"), "diagnostics"),
    **dict.fromkeys(("Plan", "PlanRow", "plan_parameters"), "plan"),
    **dict.fromkeys(("Noise", "NoiseMeter", "fisher_square_norms", "signal_and_noise"), "noise"),
    **dict.fromkeys(("StepProbe", "StepReport"), "probe"),
    **dict.fromkeys(("AdaptiveRadius", "RadiusControl"), "radius"),
    "FISMO": "optimizer",
    "Mars": "variance_reduction",
    "split_parameters": "groups",
    "undecayed_parameters": "decay",
}
"""What is imported when it is first asked for: all of this imports torch, which tools that read options do without."""


def __getattr__(name: str) -> Any:
    if name not in _MODULES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(importlib.import_module(f"{__name__}.{_MODULES[name]}"), name)
