"""Every optimizer by name: fismo, torch's, pytorch-optimizer's and timm's, built from a preset's optimizer section.

Matrix optimizers among the baselines (muon, soap, shampoo) get exactly the matrices that FISMO gets, and the same AdamW
for all other parameters: treated otherwise (a fused projection as one matrix, a transposed weight scaled the wrong way
round), a comparison would flatter FISMO.
"""

import difflib
import inspect
import re
from collections.abc import Callable, Iterable, Mapping
from functools import partial
from typing import Any, cast

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from fismo_cli.errors import UsageError
from fismo_cli.preset.optimizer_names import DEFAULTS, MATRIX_NAMES, TIMM_PREFIX, TORCH_NAMES
from fismo_cli.preset.schema import BaselineConfig, FismoConfig
from fismo_core import FISMO, Mars, Plan, split_parameters
from fismo_core.layout import shares_memory
from fismo_core.routing import layout_from_plain, plan_of_groups
from fismo_core.sharding import rows_of

__all__ = ["MatrixOptimizer", "build_mars", "build_optimizer", "learning_rates", "optimizer_state_bytes"]

Group = dict[str, Any]

NOT_ARGUMENTS = {
    *("name", "form", "trust_radius", "adamw", "rules"),
    *("adapt_radius", "variance_reduction", "mars_gamma"),
}
"""Keys of FISMO's section that are no arguments of its constructor."""


def build_optimizer(config: FismoConfig | BaselineConfig, model: nn.Module, *, process_group: Any = None) -> Optimizer:
    """The optimizer that a preset asks for, over all trainable parameters of the model.

    Args:
        config: the preset's optimizer section.
        model: the model, on its final device.
        process_group: ranks between which FISMO shares its work; other optimizers do all of it in each.

    Returns:
        An optimizer. Its groups hold the model's parameters and the peak learning rate as `lr`.

    Raises:
        UsageError: an unknown name, an argument that the optimizer does not take, or rules that match nothing.
    """
    if not any(parameter.requires_grad for parameter in model.parameters()):
        raise UsageError("the model has no trainable parameters")
    try:
        if isinstance(config, FismoConfig):
            return _build_fismo(config, model, process_group)
        create = _baseline(config)
        if config.name in MATRIX_NAMES:
            return MatrixOptimizer(split_parameters(model, config.rules), create, config.adamw.model_dump())
        return create([parameter for parameter in model.parameters() if parameter.requires_grad])
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


def _build_fismo(config: FismoConfig, model: nn.Module, process_group: Any) -> FISMO:
    options = config.model_dump(exclude=NOT_ARGUMENTS)
    adamw = {f"adamw_{key}": value for key, value in config.adamw.model_dump().items()}
    forms: dict[str, Callable[..., FISMO]] = {"default": FISMO, "dense": FISMO.dense, "paper": FISMO.paper}
    groups = split_parameters(model, config.rules)
    return forms[config.form](groups, config.trust_radius, **options, **adamw, process_group=process_group)


class MatrixOptimizer(Optimizer):
    """A matrix optimizer on the matrices that FISMO would treat, and AdamW on all other parameters.

    The inner optimizer works on two-dimensional views that share memory with the parameters; where strides make that
    impossible (a convolution in channels-last memory), values are copied to and fro.

    Args:
        groups: from `split_parameters`.
        create: makes the inner optimizer from a list of matrices.
        adamw: arguments of `torch.optim.AdamW`.
    """

    def __init__(
        self, groups: list[Group], create: Callable[[Iterable[Tensor]], Optimizer], adamw: Mapping[str, Any]
    ) -> None:
        super().__init__(groups, {})
        self._inner: list[Optimizer] = []
        self._views: list[tuple[nn.Parameter, Any, list[Tensor]]] = []
        for group in self.param_groups:
            if group["rule"] == "adamw":
                inner: Optimizer = torch.optim.AdamW(group["params"], **adamw)
            else:
                for parameter, plain in zip(group["params"], group["layouts"], strict=True):
                    layout = layout_from_plain(plain)
                    self._views.append((parameter, layout, layout.split(parameter.detach())))
                inner = create([view for _, _, views in self._views for view in views])
            group |= {k: v for k, v in inner.param_groups[0].items() if k in ("lr", "momentum", "betas")}
            self._inner.append(inner)

    @torch.no_grad()
    def step(self, closure: Callable[[], float] | None = None) -> float | None:  # type: ignore[override]
        """One step of both optimizers, each at its group's `lr`."""
        loss = None
        if closure is not None:
            with torch.enable_grad():
                loss = closure()
        copied = [entry for entry in self._views if not shares_memory(entry[0], entry[2])]
        for parameter, layout, views in copied:
            for view, value in zip(views, layout.split(parameter), strict=True):
                view.copy_(value)
        for parameter, layout, views in self._views:
            gradients = [None] * len(views) if parameter.grad is None else layout.split(parameter.grad)
            for view, gradient in zip(views, gradients, strict=True):
                view.grad = gradient
        for group, inner in zip(self.param_groups, self._inner, strict=True):
            for inner_group in inner.param_groups:
                inner_group["lr"] = group["lr"]
            inner.step()
        for parameter, layout, views in copied:
            parameter.copy_(layout.join(views, parameter.shape))
        for _, _, views in self._views:
            for view in views:
                view.grad = None  # or the gradients would outlive zero_grad
        return loss

    def plan(self) -> Plan:
        """Which parameter is treated by whom, as `FISMO.plan`."""
        return plan_of_groups(self.param_groups)

    def state_dict(self) -> dict[str, Any]:
        """The groups, and the state of each inner optimizer in their order."""
        return {**super().state_dict(), "inner": [inner.state_dict() for inner in self._inner]}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Load what `state_dict` gave.

        Raises:
            ValueError: if it is the state of another kind of optimizer.
        """
        if len(state_dict.get("inner", ())) != len(self._inner):
            raise ValueError("this is not the state of the same matrix optimizer")
        super().load_state_dict({key: value for key, value in state_dict.items() if key != "inner"})
        for inner, state in zip(self._inner, state_dict["inner"], strict=True):
            inner.load_state_dict(state)

    def __getstate__(self) -> dict[str, Any]:
        # A copy's views would no longer share memory with its parameters, and it would silently train nothing.
        raise TypeError("a matrix optimizer cannot be copied or pickled; build another one and load its state_dict")


def _baseline(config: BaselineConfig) -> Callable[[Iterable[Tensor]], Optimizer]:
    """A constructor that needs only the parameters."""
    factory = _factory(config.name)
    known = inspect.signature(factory).parameters
    given = {
        key: value
        for key, value in {"lr": config.lr, "momentum": config.momentum, "betas": config.betas}.items()
        if value is not None
    }
    # Libraries differ in their default weight decay (torch's Muon: 0.1, its AdamW: 0.01): the preset's always counts.
    if "weight_decay" in known or config.weight_decay:
        given["weight_decay"] = config.weight_decay
    options = {**DEFAULTS.get(config.name, {}), **given, **config.args}
    for key in options:
        if key not in known or key == "params":
            where = f"optimizer.args.{key}" if key in config.args else f"optimizer.{key}"
            near = difflib.get_close_matches(key, [name for name in known if name not in ("params", "kwargs")], n=1)
            hint = f" Did you mean {near[0]}?" if near else ""
            raise UsageError(f"{where}: {config.name} has no argument {key}.{hint}")
    try:
        create = partial(factory, **options)
        create([nn.Parameter(torch.zeros(2, 2))])  # wrong types and ranges show before any data is read
    except (TypeError, ValueError, AssertionError) as error:
        raise UsageError(f"optimizer {config.name}: {error}") from error
    return create


def _factory(name: str) -> Callable[..., Optimizer]:
    if name.startswith(TIMM_PREFIX):
        from timm.optim import get_optimizer_class, get_optimizer_info, list_optimizers  # type: ignore[attr-defined]

        try:
            if get_optimizer_info(name.removeprefix(TIMM_PREFIX)).second_order:
                raise UsageError(
                    f"optimizer.name: {name} needs second derivatives of the loss, which are not computed here"
                )
            return get_optimizer_class(name.removeprefix(TIMM_PREFIX), bind_defaults=True)
        except ValueError as error:
            near = difflib.get_close_matches(name.removeprefix(TIMM_PREFIX), [str(n) for n in list_optimizers()], n=1)
            hint = f" Did you mean {TIMM_PREFIX}{near[0]}?" if near else ""
            raise UsageError(
                f"optimizer.name: timm has no optimizer {name.removeprefix(TIMM_PREFIX)!r}.{hint}"
            ) from error
    if name in TORCH_NAMES:
        found: Any = next(
            value for key, value in vars(torch.optim).items() if key.lower() == name and inspect.isclass(value)
        )
        return cast(Callable[..., Optimizer], found)
    import pytorch_optimizer

    return pytorch_optimizer.load_optimizer(name)


def learning_rates(optimizer: Optimizer) -> dict[str, float]:
    """Current learning rate of each group, by its rule (`matrix`, `adamw`), or `lr` where there is one group.

    FISMO's is the trust radius, as adapted.
    """
    rates = {
        group.get("rule", str(index)): float(group["lr"]) * group.get("radius_scale", 1.0)
        for index, group in enumerate(optimizer.param_groups)
    }
    return {"lr": next(iter(rates.values()))} if len(optimizer.param_groups) == 1 else rates


def optimizer_state_bytes(optimizer: Optimizer) -> int:
    """Bytes of all tensors in the optimizer's state in this process."""
    if isinstance(optimizer, FISMO):
        return optimizer.state_bytes()
    return sum(rows_of(tensor).numel() * tensor.element_size() for tensor in _tensors(optimizer.state_dict()))


def _tensors(value: Any) -> Iterable[Tensor]:
    if isinstance(value, Tensor):
        yield value
    elif isinstance(value, Mapping):
        for item in value.values():
            yield from _tensors(item)
    elif isinstance(value, (list, tuple)):
        for item in value:
            yield from _tensors(item)
