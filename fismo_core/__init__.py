"""The FISMO optimizer for PyTorch. Depends on torch alone."""

from fismo_core.diagnostics import MatrixDiagnostics, diagnose
from fismo_core.optimizer import FISMO
from fismo_core.options import DENSE_FORM, PAPER_FORM
from fismo_core.routing import Plan, PlanRow, plan_parameters, split_parameters

__all__ = [
    "DENSE_FORM",
    "FISMO",
    "PAPER_FORM",
    "MatrixDiagnostics",
    "Plan",
    "PlanRow",
    "diagnose",
    "plan_parameters",
    "split_parameters",
]
