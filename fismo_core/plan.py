"""How every parameter of a model or an optimizer is treated, as a table; rules by which a user decides otherwise."""

import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from torch import Tensor, nn
from torch.nn.parameter import UninitializedParameter

from fismo_core.config import Rule
from fismo_core.layout import MatrixLayout
from fismo_core.routing import Decision, decide_by_modules, decide_by_name

__all__ = ["Plan", "PlanRow", "plan_of_groups", "plan_parameters"]


@dataclass(frozen=True)
class PlanRow:
    """How one parameter is treated: its name, shape, rule, matrices and the reason."""

    name: str
    shape: tuple[int, ...]
    rule: Rule
    layout: MatrixLayout | None
    matrices: tuple[tuple[int, int], ...]
    reason: str


@dataclass(frozen=True)
class Plan:
    """How every parameter of an optimizer is treated; `str(plan)` is a table."""

    rows: tuple[PlanRow, ...]
    notes: tuple[str, ...] = ()

    def __str__(self) -> str:
        head = ("parameter", "shape", "rule", "matrices", "why")
        lines = [head, *((r.name, _dims(r.shape), r.rule, _matrices(r.matrices), r.reason) for r in self.rows)]
        widths = [max(len(line[column]) for line in lines) for column in range(len(head))]
        table = ["  ".join(c.ljust(width) for c, width in zip(line, widths, strict=True)).rstrip() for line in lines]
        return "\n".join([*table, *self.notes])


def plan_parameters(
    parameters: nn.Module | Iterable[tuple[str, Tensor]],
    rules: Mapping[str, Rule] | None = None,
    *,
    frozen: bool = False,
) -> Plan:
    """Decide for every trainable parameter who treats it.

    Args:
        parameters: a module; or names and parameters, as `model.named_parameters()` gives them, of which nothing but
            names and shapes is known then.
        rules: as in `split_parameters`.
        frozen: decide for parameters that are not trainable (yet), too.

    Raises:
        ValueError: as in `split_parameters`.
    """
    if isinstance(parameters, nn.Module):
        decided = decide_by_modules(parameters)
        named: list[tuple[str, Tensor]] = list(parameters.named_parameters())
    else:
        named = list(parameters)
        decided = {name: decide_by_name(name, parameter) for name, parameter in named}
    own = _Rules(rules or {})
    rows = []
    for name, parameter in named:
        if not (parameter.requires_grad or frozen):
            continue
        if isinstance(parameter, UninitializedParameter):
            raise ValueError(f"{name} has no shape yet: run the model once before its parameters are split")
        rows.append(_row(name, parameter, own.applied(name, parameter, decided[name])))
    own.check_used()
    return Plan(tuple(rows))


def plan_of_groups(groups: Sequence[Mapping[str, Any]]) -> Plan:
    """The plan that parameter groups made by `split_parameters`, or given by hand, amount to."""
    rows = []
    for group in groups:
        parameters = group["params"]
        plain: Sequence[Any] = group.get("layouts") or [None] * len(parameters)
        layouts = [None if layout is None else MatrixLayout.from_plain(layout) for layout in plain]
        names = group.get("param_names") or ["(unnamed)"] * len(parameters)
        reasons = group.get("reasons") or ["as given"] * len(parameters)
        for name, parameter, layout, reason in zip(names, parameters, layouts, reasons, strict=True):
            rows.append(_row(name, parameter, (group["rule"], layout, reason)))
    return Plan(tuple(rows))


class _Rules:
    """A user's rules: regular expressions on names, of which the first that matches wins."""

    def __init__(self, rules: Mapping[str, Rule]) -> None:
        for pattern, rule in rules.items():
            if rule not in ("matrix", "adamw"):
                raise ValueError(f"rule {pattern!r}: unknown rule {rule!r}; choose matrix or adamw")
        self._rules = [(pattern, re.compile(pattern), rule) for pattern, rule in rules.items()]
        self._unused = set(rules)

    def applied(self, name: str, parameter: Tensor, decision: Decision) -> Decision:
        for pattern, regex, rule in self._rules:
            if regex.search(name):
                self._unused.discard(pattern)
                if rule == "adamw":
                    return "adamw", None, f"rule {pattern!r}"
                if parameter.ndim < 2:
                    raise ValueError(
                        f"rule {pattern!r} makes a matrix of {name}, which has shape {tuple(parameter.shape)}"
                    )
                return "matrix", decision[1] or MatrixLayout(), f"rule {pattern!r}"
        return decision

    def check_used(self) -> None:
        if self._unused:
            raise ValueError(f"rules that match no trainable parameter: {', '.join(sorted(self._unused))}")


def _row(name: str, parameter: Tensor, decision: Decision) -> PlanRow:
    rule, layout, reason = decision
    matrices = tuple(layout.shapes(parameter)) if layout is not None else ()
    return PlanRow(name, tuple(parameter.shape), rule, layout, matrices, reason)


def _dims(shape: tuple[int, ...]) -> str:
    return " x ".join(str(size) for size in shape) or "scalar"


def _matrices(shapes: tuple[tuple[int, int], ...]) -> str:
    counts: dict[tuple[int, int], int] = {}
    for shape in shapes:
        counts[shape] = counts.get(shape, 0) + 1
    return ", ".join((f"{count} of " if count > 1 else "") + _dims(shape) for shape, count in counts.items()) or "-"
