"""The FISMO optimizer for PyTorch. Depends on torch alone."""

from fismo_core.config import DENSE, PAPER, AdamW, FisherMetric, FismoOptions, Polar
from fismo_core.decay import undecayed_parameters
from fismo_core.diagnostics import MatrixDiagnostics, diagnose
from fismo_core.groups import split_parameters
from fismo_core.noise import fisher_square_norms, signal_and_noise
from fismo_core.optimizer import FISMO
from fismo_core.plan import Plan, PlanRow, plan_parameters
from fismo_core.variance_reduction import Mars

__version__ = "0.1.0"

__all__ = [
    "DENSE",
    "FISMO",
    "PAPER",
    "AdamW",
    "FisherMetric",
    "FismoOptions",
    "Mars",
    "MatrixDiagnostics",
    "Plan",
    "PlanRow",
    "Polar",
    "diagnose",
    "fisher_square_norms",
    "plan_parameters",
    "signal_and_noise",
    "split_parameters",
    "undecayed_parameters",
]
