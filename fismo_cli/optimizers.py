"""Every optimizer by name: fismo, torch's, pytorch-optimizer's and timm's, built from a preset's optimizer section.

Matrix optimizers among the baselines (muon, soap, shampoo, ...) get exactly the matrices that FISMO gets, and the same
AdamW for all other parameters: treated otherwise (a fused projection as one matrix, a transposed weight scaled the
wrong way round), a comparison would flatter FISMO. Weight decay goes by one rule for all of them.
"""

import re
import statistics
from collections.abc import Collection, Iterable, Mapping
from typing import Any

from torch import Tensor, nn
from torch.optim import Optimizer

from fismo_cli.baselines import baseline
from fismo_cli.errors import UsageError
from fismo_cli.matrix_optimizer import Group, MatrixOptimizer
from fismo_cli.preset.optimizer_names import takes_matrices
from fismo_cli.preset.schema import BaselineConfig, FismoConfig, fismo_options, plain
from fismo_core import FISMO, Mars, split_parameters, undecayed_parameters
from fismo_core.config import Rule
from fismo_core.dtensors import local_part
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
        if isinstance(config, FismoConfig):
            return _build_fismo(config, model, process_group, forward_flops)
        if not takes_matrices(config.name):
            undecayed = undecayed_parameters(model) if config.weight_decay_on == "matrices" else {}
            return _build_elementwise(config, model, undecayed)
        groups = split_parameters(model, config.rules, decayed=_decayed_rules(config))
        return MatrixOptimizer(groups, baseline(config, _usual_side(groups)), plain(config.adamw))
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


def _build_fismo(config: FismoConfig, model: nn.Module, process_group: Any, forward_flops: float | None) -> FISMO:
    groups = split_parameters(model, config.rules, decayed=_decayed_rules(config))
    entries = sum(p.numel() for group in groups if group["rule"] == "matrix" for _, p in group["params"])
    rows = forward_flops / (2 * entries) if forward_flops and entries else None
    return FISMO.of(groups, fismo_options(config), process_group=process_group, rows_per_step=rows)


def _decayed_rules(config: FismoConfig | BaselineConfig) -> list[Rule]:
    """Rules of whose parameters some decay and some must not."""
    decays: dict[Rule, float] = {"matrix": config.weight_decay, "adamw": config.adamw.weight_decay}
    return [rule for rule, decay in decays.items() if decay and config.weight_decay_on == "matrices"]


def _build_elementwise(config: BaselineConfig, model: nn.Module, undecayed: Collection[str]) -> Optimizer:
    """An optimizer that is given all parameters as they are."""
    named = [(name, parameter) for name, parameter in model.named_parameters() if parameter.requires_grad]
    decayed = [parameter for name, parameter in named if name not in undecayed]
    rest = [parameter for name, parameter in named if name in undecayed]
    create = baseline(config)
    if not config.weight_decay or not rest:
        return create([parameter for _, parameter in named])
    groups = ({"params": decayed}, {"params": rest, "weight_decay": 0.0})
    return create([group for group in groups if group["params"]])


def _usual_side(groups: Iterable[Group]) -> int:
    """The median of the matrices' smaller sides; 1 where there are none."""
    sides = [
        min(shape)
        for group in groups
        for (_, parameter), layout in zip(group["params"], group.get("layouts", ()), strict=False)
        for shape in MatrixLayout.from_plain(layout).shapes(parameter)
    ]
    return statistics.median_high(sides) if sides else 1


def learning_rates(optimizer: Optimizer) -> dict[str, float]:
    """Current learning rate of each group, by its rule (`matrix`, `adamw`), or `lr` where all have one.

    FISMO's is the trust radius, as adapted.
    """
    rates = {
        group.get("rule", "lr"): float(group["lr"]) * group.get("radius_scale", 1.0) for group in optimizer.param_groups
    }
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
