"""Optimizers of torch, pytorch-optimizer and timm: found by name, given their settings, and tried before training."""

import inspect
import warnings
from collections.abc import Callable, Iterable, Mapping
from functools import partial
from typing import Any, cast

import torch
from torch import nn
from torch.optim import Optimizer

from fismo_cli.errors import UsageError, first_line
from fismo_cli.own_optimizers import is_own, own_class
from fismo_cli.preset.optimizer_names import (
    DEFAULTS,
    LOW_RANK_NAMES,
    TIMM_PREFIX,
    TORCH_NAMES,
    is_optimizer_name,
    takes_matrices,
    why_refused,
)
from fismo_cli.preset.schema import BaselineConfig
from fismo_cli.preset.suggestions import did_you_mean, near
from fismo_cli.tasks.randomness import preserved_generators

__all__ = ["baseline"]

TRIED_SHAPES = ((4, 3), (3, 4), (2, 3, 2, 2), (3,), ())
"""Parameters on which an optimizer is tried; matrix optimizers are given matrices only."""

Create = Callable[[Iterable[Any]], Optimizer]


def baseline(config: BaselineConfig, usual_side: int = 1) -> Create:
    """A constructor that needs only the parameters, or groups of them.

    Args:
        config: the preset's optimizer section.
        usual_side: the smaller side of most matrices, a quarter of which is a low-rank optimizer's rank by default.

    Raises:
        UsageError: an unknown name, an argument that the optimizer does not take, or with which it takes no step.
    """
    factory, known = _factory(config.name)
    given = {
        key: value
        for key, value in {"lr": config.lr, "momentum": config.momentum, "betas": config.betas}.items()
        if value is not None
    }
    # Libraries differ in their default weight decay (torch's Muon: 0.1, its AdamW: 0.01): the preset's always counts.
    if "weight_decay" in known or config.weight_decay:
        given["weight_decay"] = config.weight_decay
    defaults = dict(DEFAULTS.get(config.name, {}))
    if config.name in LOW_RANK_NAMES:
        defaults["rank"] = max(1, usual_side // 4)
    options = {**defaults, **given, **config.args}
    for key in options:
        if key not in known and key not in defaults:
            where = f"optimizer.args.{key}" if key in config.args else f"optimizer.{key}"
            hint = did_you_mean(near(key, [name for name in known if name not in ("params", "kwargs")]))
            raise UsageError(f"{where}: {config.name} has no argument {key}.{hint}")
    options = {**_following(config, options, known), **options}
    for key, value in options.items():
        if isinstance(value, list) and key in known and isinstance(known[key].default, tuple):
            options[key] = tuple(value)
    _check_betas(config, options, known)
    create = partial(factory, **options)
    _try_out(config.name, create)
    return create


def _check_betas(config: BaselineConfig, options: Mapping[str, Any], known: Mapping[str, Any]) -> None:
    """Make sure that there are as many decay rates as the optimizer has; torch's take more without a word."""
    usual, given = known["betas"].default if "betas" in known else None, options.get("betas")
    if isinstance(usual, tuple) and given is not None and (not isinstance(given, tuple) or len(given) != len(usual)):
        key = "args.betas" if len(usual) != 2 or "betas" in config.args else "betas"
        raise UsageError(f"optimizer.{key}: {config.name} has {len(usual)} decay rates, such as {list(usual)}")


def _following(config: BaselineConfig, options: Mapping[str, Any], known: Mapping[str, Any]) -> dict[str, Any]:
    """Settings that follow from others, so that the rate and the decay that are given count for all parameters."""
    lr = options.get("lr", known["lr"].default)
    if config.name == "adabound":  # 0.1 at the library's own rate of 1e-3
        return {"final_lr": 100 * lr}
    if config.name == "mars":  # whose second rate and decay are for vectors
        return {"lr_1d": lr, "weight_decay_1d": config.weight_decay if config.weight_decay_on == "all" else 0.0}
    return {}


def _try_out(name: str, create: Create) -> None:
    """Build the optimizer and take two steps: wrong types and ranges show before any data is read."""
    shapes = [shape for shape in TRIED_SHAPES if len(shape) == 2 or not takes_matrices(name)]
    parameters = [nn.Parameter(torch.full(shape, 0.5)) for shape in shapes]
    with preserved_generators(), warnings.catch_warnings():
        warnings.simplefilter("ignore")
        try:
            optimizer = create(parameters)
            for _ in range(2):
                for parameter in parameters:
                    parameter.grad = torch.linspace(0.1, 0.2, parameter.numel()).reshape(parameter.shape)
                optimizer.step()
        except Exception as error:  # libraries raise all kinds
            raise UsageError(f"optimizer {name}: {first_line(error)}") from error


def _factory(name: str) -> tuple[Callable[..., Optimizer], Mapping[str, inspect.Parameter]]:
    """What makes an optimizer, and the arguments that it takes."""
    if not is_optimizer_name(name):
        raise UsageError(f"optimizer.name: {why_refused(name) or f'unknown optimizer {name}'}")
    if is_own(name):
        own = own_class(name)
        return own, inspect.signature(own).parameters
    try:
        if name.startswith(TIMM_PREFIX):
            from timm.optim import create_optimizer_v2, get_optimizer_class  # type: ignore[attr-defined]

            known = inspect.signature(get_optimizer_class(name.removeprefix(TIMM_PREFIX), bind_defaults=False))
            return partial(create_optimizer_v2, opt=name.removeprefix(TIMM_PREFIX)), known.parameters
        if name in TORCH_NAMES:
            found: Any = next(
                value for key, value in vars(torch.optim).items() if key.lower() == name and inspect.isclass(value)
            )
        else:
            import pytorch_optimizer

            found = pytorch_optimizer.load_optimizer(name)
    except (ImportError, ValueError, NotImplementedError, StopIteration) as error:  # of another version
        library = name.split("/")[0] if "/" in name else "torch" if name in TORCH_NAMES else "pytorch-optimizer"
        raise UsageError(f"optimizer.name: the installed version of {library} has no {name}") from error
    return cast(Callable[..., Optimizer], found), inspect.signature(found).parameters
