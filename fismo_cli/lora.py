"""LoRA by peft: low-rank adapters beside a model's linear layers, which alone are trained; merged when it is saved."""

import copy
import warnings
from pathlib import Path
from typing import Any

from torch import nn

from fismo_cli.errors import UsageError, first_line
from fismo_cli.preset.schema import LoraConfig, ModelConfig
from fismo_cli.words import listed

__all__ = ["add_adapters", "merged", "save_adapters"]

NAME = "default"
"""peft's name for the only adapter of a model."""


def add_adapters(model: nn.Module, config: LoraConfig) -> str:
    """Put adapters into a model, in place, and freeze all else; the model computes what it did before.

    The caller has seeded torch, from which the adapters' A are drawn; their B are zero.

    Returns:
        A sentence for the user: how much is trained.

    Raises:
        UsageError: peft is not installed, or the model has no layers of these names that can have an adapter.
    """
    try:
        from peft import LoraConfig as PeftConfig
        from peft import inject_adapter_in_model
    except ImportError as error:
        raise UsageError("model.lora needs the package peft: pip install 'fismo[lora]'") from error
    settings: Any = {
        "r": config.rank,
        "lora_alpha": config.alpha,
        "lora_dropout": config.dropout,
        "target_modules": config.target,
    }
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # that weights of a Conv1D lie the other way round, which peft heeds
            inject_adapter_in_model(PeftConfig(**settings), model, NAME)
    except ValueError as error:
        there = {name.split(".")[-2] for name, weight in model.named_parameters() if weight.dim() == 2 and "." in name}
        why = first_line(error).partition(". ")[0]
        raise UsageError(f"model.lora.target: {why}; there are {listed(sorted(there), 12)}") from error
    trained = sum(parameter.numel() for parameter in model.parameters() if parameter.requires_grad)
    count = sum(parameter.numel() for parameter in model.parameters())
    return f"model.lora: {trained:,} of {count:,} parameters are trained, in {len(_adapted(model))} layers"


def merged(model: nn.Module) -> nn.Module:
    """The model with its adapters added to the weights, as its library knows it: a copy; itself if it has none."""
    if not _adapted(model):
        return model
    plain = copy.deepcopy(model)
    for name, layer in _adapted(plain).items():
        layer.merge()
        plain.set_submodule(name, layer.get_base_layer())
    delattr(plain, "peft_config")  # transformers would save the model as one with an adapter
    return plain


def save_adapters(model: nn.Module, directory: Path, config: ModelConfig) -> None:
    """Write a model's adapters alone, as `peft.PeftModel.from_pretrained(base_model, directory)` loads them.

    Args:
        model: with adapters.
        directory: a folder, which is made.
        config: of the model, which says what the base model is.
    """
    from peft import get_peft_model_state_dict
    from safetensors.torch import save_file

    directory.mkdir()
    weights = get_peft_model_state_dict(model, adapter_name=NAME)
    save_file(
        {f"base_model.model.{name}": value.detach().cpu().contiguous() for name, value in weights.items()},
        directory / "adapter_model.safetensors",
    )
    adapted: Any = model
    settings = copy.copy(adapted.peft_config[NAME])
    settings.base_model_name_or_path = config.pretrained if isinstance(config.pretrained, str) else config.name
    settings.task_type, settings.inference_mode = "CAUSAL_LM", True
    settings.save_pretrained(str(directory))


def _adapted(model: nn.Module) -> dict[str, Any]:
    """The layers that have an adapter, by name; without importing peft where there are none."""
    if not hasattr(model, "peft_config"):
        return {}
    from peft.tuners.lora import LoraLayer

    return {name: module for name, module in model.named_modules() if isinstance(module, LoraLayer)}
