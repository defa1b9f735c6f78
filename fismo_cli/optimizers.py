"""Every optimizer by name: fismo, torch's, pytorch-optimizer's and timm's, built from a preset's optimizer section.

Matrix optimizers among the baselines (muon, soap, shampoo, ...) get exactly the matrices that FISMO gets, and the same
AdamW for all other parameters: treated otherwise (a fused projection as one matrix, a transposed weight scaled the
wrong way round), a comparison would flatter FISMO. Weight decay goes by one rule for all of them.
"""

import re
import statistics
from collections.abc import Callable, Iterable, Mapping
from dataclasses import replace
from functools import partial
from typing import Any

from torch import Tensor, nn
from torch.optim import Optimizer

from fismo_cli.baselines import baseline
from fismo_cli.errors import UsageError
from fismo_cli.layer_decay import by_layer, layer_scales, scale_rates
from fismo_cli.matrix_optimizer import Group, MatrixOptimizer
from fismo_cli.preset.optimizer_names import takes_matrices
from fismo_cli.preset.schema import BaselineConfig, FismoConfig, fismo_options, plain
from fismo_core import FISMO, Mars, split_parameters, undecayed_parameters
from fismo_core.config import Economy, FismoOptions, Rule
from fismo_core.dtensors import local_part
from fismo_core.economy import ASSUMED_ROWS, chosen_economy
from fismo_core.layout import MatrixLayout

__all__ = ["MatrixOptimizer", "build_mars", "build_optimizer", "learning_rates", "optimizer_state_bytes"]


def build_optimizer(
    config: FismoConfig | BaselineConfig,
    model: nn.Module,
    *,
    process_group: Any = None,
    forward_flops: float | None = None,
) -> Optimizer:
    """The optimizer that a preset asks for, over all trainable parameters of the model.

    Args:
        config: the preset's optimizer section.
        model: the model, on its final device.
        process_group: ranks between which FISMO shares its work; other optimizers do all of it in each.
        forward_flops: of a whole batch, in all processes; FISMO's economy goes by it. None: unknown.

    Returns:
        An optimizer. Its groups hold the model's parameters and the peak learning rate as `lr`.

    Raises:
        UsageError: an unknown name, an argument that the optimizer does not take, or rules that match nothing.
    """
    if not any(parameter.requires_grad for parameter in model.parameters()):
        raise UsageError("the model has no trainable parameters")
    try:
        groups = _groups(config, model)
        create = _creator(config, groups, process_group, forward_flops)
        if config.layer_decay is None:
            return create(groups)
        layers, rates = by_layer(groups, layer_scales(model, config.layer_decay))
        optimizer = create(layers)
        scale_rates(optimizer, rates)
        return optimizer
    except (ValueError, re.error) as error:
        raise UsageError(f"optimizer {config.name}: {error}") from error


def build_mars(config: FismoConfig | BaselineConfig, optimizer: Optimizer) -> Mars | None:
    """The variance reduction that a preset asks for, attached to the optimizer; None if it asks for none.

    Raises:
        UsageError: if the optimizer has no momentum that it could correct.
    """
    if config.variance_reduction is None:
        return None
    try:
        return Mars(optimizer, config.mars_gamma)
    except ValueError as error:
        raise UsageError(f"optimizer.variance_reduction: {config.name}: {error}") from error


def _groups(config: FismoConfig | BaselineConfig, model: nn.Module) -> list[Group]:
    """The trained parameters: of matrix optimizers by rule; and those that must not decay apart, where any does."""
    if takes_matrices(config.name):
        return split_parameters(model, config.rules, decayed=_decayed_rules(config))
    named = [(name, parameter) for name, parameter in model.named_parameters() if parameter.requires_grad]
    apart = config.weight_decay and config.weight_decay_on == "matrices"
    undecayed = undecayed_parameters(model) if apart else {}
    decayed = [parameter for name, parameter in named if name not in undecayed]
    rest = [parameter for name, parameter in named if name in undecayed]
    groups: tuple[Group, ...] = ({"params": decayed}, {"params": rest, "weight_decay": 0.0})
    return [group for group in groups if group["params"]]


def _creator(
    config: FismoConfig | BaselineConfig, groups: list[Group], process_group: Any, forward_flops: float | None
) -> Callable[[list[Group]], Optimizer]:
    """What makes the optimizer from the groups, or from the same parameters in more groups, with the same settings."""
    if isinstance(config, FismoConfig):
        matrices = [group for group in groups if group["rule"] == "matrix"]
        entries = sum(p.numel() for group in matrices for _, p in group["params"])
        rows = forward_flops / (2 * entries) if forward_flops and entries else None
        options = fismo_options(config)
        if config.layer_decay is not None and matrices:
            options = replace(options, economy=_economy(options, matrices, rows))
        return partial(FISMO.of, options=options, process_group=process_group, rows_per_step=rows)
    if takes_matrices(config.name):
        create, adamw = baseline(config, _usual_side(groups)), plain(config.adamw)
        return partial(MatrixOptimizer, create=create, adamw=adamw)
    every = baseline(config)
    return lambda groups: every(groups[0]["params"] if [*groups[0]] == ["params"] and len(groups) == 1 else groups)


def _economy(options: FismoOptions, matrices: list[Group], rows: float | None) -> Economy:
    """That of all matrices together: groups of a layer each might choose others."""
    if options.economy != "auto":
        return options.economy
    shapes = [shape for group in matrices for shape in _shapes(group)]
    return chosen_economy(shapes, options.metric, ASSUMED_ROWS if rows is None else rows)


def _decayed_rules(config: FismoConfig | BaselineConfig) -> list[Rule]:
    """Rules of whose parameters some decay and some must not."""
    decays: dict[Rule, float] = {"matrix": config.weight_decay, "adamw": config.adamw.weight_decay}
    return [rule for rule, decay in decays.items() if decay and config.weight_decay_on == "matrices"]


def _usual_side(groups: Iterable[Group]) -> int:
    """The median of the matrices' smaller sides; 1 where there are none."""
    sides = [min(shape) for group in groups for shape in _shapes(group)]
    return statistics.median_high(sides) if sides else 1


def _shapes(group: Group) -> list[tuple[int, int]]:
    """The shapes of all matrices of a group."""
    return [
        shape
        for (_, parameter), layout in zip(group["params"], group.get("layouts", ()), strict=False)
        for shape in MatrixLayout.from_plain(layout).shapes(parameter)
    ]


def learning_rates(optimizer: Optimizer) -> dict[str, float]:
    """Current learning rate by the groups' rule (`matrix`, `adamw`), or `lr` where all have one.

    Of groups with one rule, such as layers, the highest counts. FISMO's is the trust radius, as adapted.
    """
    rates: dict[str, float] = {}
    for group in optimizer.param_groups:
        rule, rate = group.get("rule", "lr"), float(group["lr"]) * group.get("radius_scale", 1.0)
        rates[rule] = max(rate, rates.get(rule, rate))
    return {"lr": next(iter(rates.values()))} if len(rates) == 1 else rates


def optimizer_state_bytes(optimizer: Optimizer) -> int:
    """Bytes of all tensors in the optimizer's state in this process."""
    if isinstance(optimizer, FISMO):
        return optimizer.state_bytes()
    return sum(local_part(tensor).numel() * tensor.element_size() for tensor in _tensors(optimizer.state_dict()))


def _tensors(value: Any) -> Iterable[Tensor]:
    if isinstance(value, Tensor):
        yield value
    elif isinstance(value, Mapping):
        for item in value.values():
            yield from _tensors(item)
    elif isinstance(value, (list, tuple)):
        for item in value:
            yield from _tensors(item)
