"""Parameter groups of `FISMO`: made from a model, names or tensors; checked; and as plain values for a state."""

from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import fields
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from fismo_core.checked import to_plain
from fismo_core.config import AdamW, FisherMetric, FismoOptions, Polar, Rule
from fismo_core.decay import undecayed_by_name, undecayed_parameters
from fismo_core.economy import ASSUMED_ROWS, LEVELS, chosen_economy, metric_of, share_of_step
from fismo_core.layout import MatrixLayout
from fismo_core.plan import PlanRow, plan_parameters

__all__ = [
    "Group",
    "Route",
    "check_options",
    "completed",
    "described",
    "economy_notes",
    "from_plain_group",
    "names_of",
    "one_rate_warning",
    "requested_groups",
    "settle",
    "shapes_of",
    "split_parameters",
    "structure_of",
    "to_plain_group",
]

Group = dict[str, Any]

ADAMW_KEYS = tuple(entry.name for entry in fields(AdamW))
MATRIX_KEYS = tuple(entry.name for entry in fields(FismoOptions) if entry.name != "adamw")
REAL_DTYPES = (torch.float16, torch.bfloat16, torch.float32, torch.float64)


class Route(NamedTuple):
    """How a parameter is treated, and whether weight decay is for it."""

    row: PlanRow
    decayed: bool


Routes = dict[Tensor, Route]


def split_parameters(
    model: nn.Module, rules: Mapping[str, Rule] | None = None, *, decayed: Collection[Rule] = ()
) -> list[Group]:
    """Parameter groups for `FISMO`: hidden matrices in one, everything else, for AdamW, in another.

    Frozen parameters (`requires_grad=False`) are left out; a tied parameter appears once.

    Args:
        model: any module. Linear layers, attention projections and convolutions are matrices; embeddings, heads,
            norms, biases, positional and class tokens, depthwise convolutions and patch embeddings are not.
        rules: regular expressions, searched in the parameter's name, and who treats what they match; the first match
            wins over everything else. Models that are neither timm's, transformers' nor torchvision's may need one for
            their output head. Example: `{r"patch_embed": "matrix", r"blocks\\.0\\.": "adamw"}`.
        decayed: rules whose weights decay: of these, what weight decay should leave alone (`undecayed_parameters`) is
            in a group of its own, with `weight_decay=0`.

    Returns:
        Dictionaries with `params` (pairs of name and parameter), `rule`, `reasons` and, for matrices, `layouts`.

    Raises:
        ValueError: if a rule matches no parameter, names an unknown rule, or makes a vector a matrix.
    """
    parameters = dict(model.named_parameters())
    undecayed = undecayed_parameters(model) if decayed else {}
    rows = plan_parameters(model, rules).rows
    return _grouped((parameters[row.name], Route(row, row.name not in undecayed)) for row in rows)


def requested_groups(
    params: Any, rules: Mapping[str, Rule] | None, decayed: Collection[Rule]
) -> tuple[list[Any], Routes]:
    """What `FISMO` was given as parameter groups, and how each parameter that it knows is treated, frozen ones too.

    Args:
        params: a module, names and parameters, or what torch's optimizers take.
        rules: as in `split_parameters`.
        decayed: rules whose weights decay.

    Raises:
        ValueError: as `split_parameters`; or rules for parameters without names.
    """
    if isinstance(params, nn.Module):
        named: list[tuple[str, Tensor]] = list(params.named_parameters())
        rows = plan_parameters(params, rules, frozen=True).rows
        undecayed = set(undecayed_parameters(params)) if decayed else set()
    else:
        items = list(params)
        if not items or not all(isinstance(item, tuple) for item in items):
            if rules:
                raise ValueError("rules go by names: pass the model or model.named_parameters()")
            return items, {}
        named = items
        rows = plan_parameters(named, rules, frozen=True).rows
        undecayed = {name for name, parameter in named if undecayed_by_name(name, parameter)}
    routes = {
        parameter: Route(row, row.rule not in decayed or row.name not in undecayed)
        for (_, parameter), row in zip(named, rows, strict=True)
    }
    return _grouped((p, route) for p, route in routes.items() if p.requires_grad), routes


def completed(group: Group, routes: Routes, *, named: bool | None) -> Iterator[Group]:
    """A group as it is added: with a rule, or as one group for each where the parameters' rules are known.

    Args:
        group: as the user gave it.
        routes: of the parameters that are known.
        named: whether the optimizer's parameters have names; None: it has none yet.
    """
    params = [group["params"]] if isinstance(group["params"], Tensor) else list(group["params"])
    pairs = [item if isinstance(item, tuple) else (None, item) for item in params]
    known = [(parameter, routes.get(parameter)) for _, parameter in pairs]
    if "rule" not in group and known and all(route is not None for _, route in known):
        for part in _grouped((parameter, route) for parameter, route in known if route is not None):
            yield {**part, **{key: value for key, value in group.items() if key != "params"}}
        return
    if named is False:
        params = [parameter for _, parameter in pairs]
    elif named and any(name is None for name, _ in pairs):
        params = [(name or f"added.{number}", parameter) for number, (name, parameter) in enumerate(pairs)]
    yield {"rule": "matrix", **group, "params": params}


def _grouped(routed: Iterable[tuple[Tensor, Route]]) -> list[Group]:
    chosen: dict[tuple[Rule, bool], list[tuple[Tensor, PlanRow]]] = {
        (rule, decayed): [] for rule in ("matrix", "adamw") for decayed in (True, False)
    }
    for parameter, (row, decayed) in routed:
        chosen[row.rule, decayed].append((parameter, row))
    groups: list[Group] = []
    for (rule, decayed), members in chosen.items():
        if members:
            groups.append(
                {
                    "params": [(row.name, parameter) for parameter, row in members],
                    "rule": rule,
                    "reasons": [row.reason for _, row in members],
                    **({} if decayed else {"weight_decay": 0.0}),
                }
            )
            if rule == "matrix":
                groups[-1]["layouts"] = [(row.layout or MatrixLayout()).to_plain() for _, row in members]
    return groups


def names_of(group: Mapping[str, Any]) -> list[str]:
    """Names of a group's parameters, for messages."""
    return group.get("param_names") or [f"parameter {index}" for index in range(len(group["params"]))]


def _as_polar(polar: Any) -> Any:
    """A word as the method that it names; all else as it is."""
    return Polar(method=polar) if isinstance(polar, str) else polar  # type: ignore[arg-type]  # it checks itself


def settle(group: Group, rows: float) -> None:
    """Bring a group with all of an optimizer's defaults into the form of its rule, in place, and check it.

    Args:
        group: the group.
        rows: a step, by which an economy is chosen where it is `auto`.

    Raises:
        ValueError: an option that is missing or out of range, or a parameter that is no matrix.
        TypeError: a complex or integer parameter.
    """
    if group["rule"] == "adamw":
        for key in {*MATRIX_KEYS, "radius_scale"} - set(ADAMW_KEYS):
            group.pop(key, None)
    else:
        group["polar"] = _as_polar(group["polar"])
        group.setdefault("layouts", [MatrixLayout().to_plain() for _ in group["params"]])
    for name, parameter in zip(names_of(group), group["params"], strict=True):
        if parameter.dtype not in REAL_DTYPES:
            raise TypeError(f"{name} is {parameter.dtype}; FISMO needs real parameters of 16, 32 or 64 bits")
        if group["rule"] == "matrix" and parameter.ndim < 2:
            raise ValueError(
                f"{name} has shape {tuple(parameter.shape)} and is no matrix. Pass the model itself, or "
                "model.named_parameters(), so that such parameters go to AdamW; or put it into a group with "
                "rule='adamw'."
            )
    if len(group["layouts"] if group["rule"] == "matrix" else group["params"]) != len(group["params"]):
        raise ValueError("a parameter group has one layout for each of its parameters")
    check_options(group)
    if group.get("economy") == "auto":
        group["economy"] = chosen_economy(shapes_of(group), group["metric"], rows)


def shapes_of(group: Mapping[str, Any]) -> list[tuple[int, int]]:
    """The shapes of all matrices of a group."""
    layouts = map(MatrixLayout.from_plain, group["layouts"])
    shapes = [shape for p, layout in zip(group["params"], layouts, strict=True) for shape in layout.shapes(p)]
    return [(m, n) for m, n in shapes if m * n]


def check_options(group: Mapping[str, Any]) -> None:
    """Raise a ValueError that names the options of a group that are missing or out of range."""
    keys = ADAMW_KEYS if group["rule"] == "adamw" else (*MATRIX_KEYS, "radius_scale")
    missing = [key for key in (*keys, "maximize") if key not in group]
    if missing:
        raise ValueError(f"the parameter group has no {', '.join(missing)}")
    lr = group["lr"]
    values = {**{key: group[key] for key in keys}, "lr": float(lr) if isinstance(lr, Tensor) else lr}
    if group["rule"] == "adamw":
        AdamW(**values)
        return
    scale = values.pop("radius_scale")
    if callable(values["polar"]):
        del values["polar"]
    FismoOptions(**values)
    if isinstance(scale, bool) or not isinstance(scale, int | float) or not scale > 0:
        raise ValueError(f"radius_scale must be a positive number, got {scale!r}")


def structure_of(group: Mapping[str, Any]) -> tuple[Any, ...]:
    """The options that decide which state a group has; they must not change once it is allocated."""
    metric = metric_of(group)
    return (metric.power == 0, metric.power == 0.5, metric.damping_scale, metric.max_dim, metric.max_ratio)


def to_plain_group(group: Mapping[str, Any]) -> Group:
    """A group of plain values, for a state: options as dictionaries, a function as its name."""
    plain = {key: to_plain(value) for key, value in group.items()}
    if callable(plain.get("polar")):
        plain["polar"] = _name_of(plain["polar"])
    return plain


def from_plain_group(saved: Mapping[str, Any], own: Mapping[str, Any]) -> Group:
    """The inverse of `to_plain_group`; a function is the one that the optimizer's own group has.

    Raises:
        ValueError: if options are unknown or out of range, or the state was made with another function.
    """
    group = dict(saved)
    if group.get("rule") == "matrix":
        for key, kind in (("metric", FisherMetric), ("polar", Polar)):
            if isinstance(group.get(key), Mapping):
                try:
                    group[key] = kind(**group[key])
                except TypeError as error:
                    raise ValueError(f"the state's {key} is of another version: {error}") from error
        if isinstance(group.get("polar"), str):
            if _name_of(own["polar"]) != group["polar"]:
                raise ValueError(f"the state was made with polar={group['polar']}; give that function to the optimizer")
            group["polar"] = own["polar"]
    return group


def _name_of(function: Any) -> str:
    return f"{getattr(function, '__module__', '')}.{getattr(function, '__qualname__', type(function).__qualname__)}"


def described(group: Mapping[str, Any]) -> str:
    """A group in one line: how many parameters, and the options that differ from the defaults."""
    count, keys = len(group["params"]), MATRIX_KEYS if group["rule"] == "matrix" else ADAMW_KEYS
    usual = FismoOptions() if group["rule"] == "matrix" else AdamW()
    shown = [key for key in keys if key == "lr" or group[key] != getattr(usual, key)]
    who = "FISMO" if group["rule"] == "matrix" else "AdamW"
    return ", ".join([f"{who} of {count} parameter{'s' * (count != 1)}", *(f"{key}={group[key]!r}" for key in shown)])


def economy_notes(groups: Iterable[Mapping[str, Any]], rows: float | None) -> tuple[str, ...]:
    """For each group of matrices in a sentence: its economy, and about which part of a step its matrices take.

    Args:
        groups: of an optimizer.
        rows: a step; None: nobody has said.
    """
    known = ASSUMED_ROWS if rows is None else rows
    notes = []
    for group in groups:
        if group["rule"] == "matrix" and (shapes := shapes_of(group)) and group["metric"].power > 0:
            metric, level = metric_of(group), LEVELS[group["economy"]]
            share = share_of_step(shapes, metric, known)
            assumed = " (assumed: say rows_per_step)" if rows is None else ""
            notes.append(
                f"economy {group['economy']}: {level.words}, roots every {metric.refresh_every} steps. With "
                f"{known:,.0f} rows a step{assumed} the optimizer takes about {100 * share:.2g} % of a step."
            )
    return tuple(dict.fromkeys(notes))


def one_rate_warning(given: Sequence[float], rates: Sequence[float | Tensor]) -> str | None:
    """What is wrong if groups that were given unlike learning rates have the same one now."""
    if len(set(given)) < 2 or len(now := {float(rate) for rate in rates}) > 1 or now == {0.0}:
        return None
    return (
        f"all parameter groups have the learning rate {now.pop():g}, but were given "
        f"{', '.join(f'{rate:g}' for rate in given)}: a scheduler or a loop has set one for all. AdamW's parameters "
        "need another one than matrices: give the scheduler a list, such as OneCycleLR(optimizer, "
        "max_lr=[group['lr'] for group in optimizer.param_groups], ...), or scale each group's own"
    )
