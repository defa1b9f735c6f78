"""The FISMO optimizer for PyTorch. Depends on torch alone."""

from fismo_core.decay import undecayed_parameters
from fismo_core.diagnostics import MatrixDiagnostics, diagnose
from fismo_core.noise import fisher_square_norms, signal_and_noise
from fismo_core.optimizer import FISMO
from fismo_core.options import DENSE_FORM, PAPER_FORM
from fismo_core.routing import Plan, PlanRow, plan_parameters, split_parameters
from fismo_core.variance_reduction import Mars

__all__ = [
    "DENSE_FORM",
    "FISMO",
    "PAPER_FORM",
    "Mars",
    "MatrixDiagnostics",
    "Plan",
    "PlanRow",
    "diagnose",
    "fisher_square_norms",
    "plan_parameters",
    "signal_and_noise",
    "split_parameters",
    "undecayed_parameters",
]
