"""Causal language models of transformers: from an architecture's configuration, a local folder or the hub."""

import difflib
import inspect
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from fismo_cli.errors import UsageError
from fismo_cli.hub import reachable
from fismo_cli.preset.schema import ModelConfig
from fismo_cli.tasks.tokenizers import HubTokenizer, Tokenizer, same_tokens, saved_tokenizer
from fismo_cli.transformers_checks import (
    check_next_token_model,
    check_padded_positions,
    padding_hint,
    use_own_loss,
)
from fismo_cli.weights_file import read_weights, without_prefix
from fismo_cli.words import listed

__all__ = ["build", "load_directory", "model_folder", "save_directory"]

_REMEDY = "give a local folder, or an architecture such as gpt2 with model.args and pretrained: false"


def build(
    model: ModelConfig, data_args: Mapping[str, Any], block_size: int, tokenizer: Tokenizer | None = None
) -> tuple[nn.Module, list[str]]:
    """The model and notes on what had to be adapted.

    Args:
        model: The preset's model.
        data_args: What the tokenizer fixes: vocab_size and the ids of special tokens.
        block_size: Tokens of a sample.
        tokenizer: What makes the tokens; pretrained weights must have been trained on the same.

    Raises:
        UsageError: transformers does not know the architecture or a key, the weights cannot be had or do not fit
            (`model.name`, the tokenizer), or the model is not a causal language model of at least `block_size`
            positions.
    """
    network = _built(model, data_args, block_size, tokenizer)
    use_own_loss(network)
    check_next_token_model(network, model.name, block_size)
    return network, _notes(network.config, model)


def _built(model: ModelConfig, data_args: Mapping[str, Any], block_size: int, tokenizer: Tokenizer | None) -> nn.Module:
    if isinstance(model.pretrained, str):
        path = Path(model.pretrained).expanduser()
        if not path.is_file():
            folder = model_folder(path, "model.pretrained")
            _check_tokenizer(folder, tokenizer)
            return _from_weights(str(folder), model, data_args, block_size)
        if (path.parent / "model").is_dir():  # the flat file of a run directory
            _check_tokenizer(path.parent / "model", tokenizer)
        network = _from_configuration(model, data_args, block_size)
        _load_file(network, path)
        return network
    if model.pretrained:
        if _is_architecture(model.name):
            raise UsageError(
                f"model.pretrained: {model.name} is an architecture without weights; name a hub model or a local "
                "folder, or set pretrained to false"
            )
        _check_tokenizer(Path(_expand(model.name)) if _is_folder(model.name) else model.name, tokenizer)
        return _from_weights(_expand(model.name), model, data_args, block_size)
    return _from_configuration(model, data_args, block_size)


def _notes(config: Any, model: ModelConfig) -> list[str]:
    """What was set and does nothing."""
    coefficients = [key for key in model.args if key.endswith("aux_loss_coef")]
    if not coefficients or getattr(config, "output_router_logits", True):
        return []
    return [
        f"model.args.{coefficients[0]} has no effect: transformers adds that loss only where "
        "model.args.output_router_logits is true"
    ]


def _is_architecture(name: str) -> bool:
    """Whether it is a name of an architecture, and not that of a model's folder here; any other folder is no model."""
    from transformers import CONFIG_MAPPING

    return name in CONFIG_MAPPING and not (Path(name).expanduser() / "config.json").is_file()


def _is_folder(name: str) -> bool:
    return Path(name).expanduser().is_dir()


def _expand(name: str) -> str:
    return str(Path(name).expanduser()) if _is_folder(name) else name


def _check_tokenizer(source: Path | str, tokenizer: Tokenizer | None) -> None:
    """Refuse weights that were trained on other tokens: every id would mean something else to them.

    Where the model's folder (or its place on the hub) holds no tokenizer, only the vocabulary's size tells, which is
    checked elsewhere.
    """
    if tokenizer is None or tokenizer.name == str(source):
        return
    try:
        saved = saved_tokenizer(source) if isinstance(source, Path) else HubTokenizer(source)
    except UsageError:
        return
    if saved is None or same_tokens(saved, tokenizer):
        return
    raise UsageError(
        f"data.tokenizer is {tokenizer.name}, but the model in {source} was trained with "
        f"{'bytes' if saved.name == 'bytes' else 'the tokenizer beside it'}; write data.tokenizer: {saved.name}, or "
        "start from other weights (model.pretrained)"
    )


@contextmanager
def _quiet() -> Iterator[None]:
    """Keep transformers' bars and reports on reading and writing files out of this tool's own output."""
    from transformers.utils import logging as module

    logging: Any = module
    shown = logging.is_progress_bar_enabled()
    verbosity = logging.get_verbosity()
    logging.disable_progress_bar()
    logging.set_verbosity_error()
    try:
        yield
    finally:
        logging.set_verbosity(verbosity)
        if shown:
            logging.enable_progress_bar()


def _causal_architectures() -> Mapping[str, Any]:
    from transformers.models.auto.modeling_auto import MODEL_FOR_CAUSAL_LM_MAPPING_NAMES

    return MODEL_FOR_CAUSAL_LM_MAPPING_NAMES


def _from_configuration(model: ModelConfig, data_args: Mapping[str, Any], block_size: int) -> nn.Module:
    from transformers import AutoModelForCausalLM

    # Without this a typo of an architecture would be looked up on the hub.
    if not _is_architecture(model.name) and "/" not in model.name and not _is_folder(model.name):
        close = difflib.get_close_matches(model.name, list(_causal_architectures()), n=3, cutoff=0.6)
        if close:
            raise UsageError(
                f"model.name: transformers has no architecture {model.name}; did you mean {' or '.join(close)}?"
            )
    config = _base_configuration(model)
    _check_keys(config, model)
    given, needed = model.args.get("vocab_size"), int(data_args["vocab_size"])
    if isinstance(given, int) and given < needed:
        raise UsageError(
            f"model.args.vocab_size is {given}, but data.tokenizer has {needed} tokens; leave it out or make it larger"
        )
    changes = {**data_args, **{key: _as_number(value, config, key) for key, value in model.args.items()}}
    if not hasattr(config, "vocab_size"):
        raise UsageError(f"model.name: {model.name} has no vocabulary of its own; name a pure language model")
    if _is_architecture(model.name):
        from transformers import AutoConfig

        try:
            config = AutoConfig.for_model(model.name, **changes)
        except Exception as error:  # configurations validate themselves in many ways
            hint = padding_hint(changes["pad_token_id"], config, error)
            raise UsageError(f"model.args: {model.name} refuses them: {_first_line(error)}{hint}") from error
    else:
        for key, value in changes.items():
            setattr(config, key, value)
    _check_positions(config, model.name, block_size)
    try:
        build_from: Any = AutoModelForCausalLM.from_config
        network: nn.Module = build_from(config, dtype=torch.float32)
    except Exception as error:  # a bad size surfaces as whatever the model's constructor stumbles over
        raise UsageError(f"model.args: {model.name} cannot be built from them: {_first_line(error)}") from error
    check_padded_positions(network, model.name, block_size)
    return network


def _as_number(value: Any, config: Any, key: str) -> Any:
    """A whole number where the configuration has a fraction, as a fraction: configurations refuse 5 for 5.0."""
    whole = isinstance(value, int) and not isinstance(value, bool)
    return float(value) if whole and isinstance(getattr(config, key, None), float) else value


def _base_configuration(model: ModelConfig) -> Any:
    """The configuration before `model.args`."""
    from transformers import AutoConfig

    if _is_architecture(model.name):
        try:
            config = AutoConfig.for_model(model.name)
        except Exception as error:  # one that is a part of another model, or refuses its own defaults
            raise UsageError(
                f"model.name: {model.name} has no configuration of its own: {_first_line(error)}"
            ) from error
    else:
        with reachable(f"the model {model.name}", "model.name", _REMEDY, local=_is_folder(model.name)):
            config = AutoConfig.from_pretrained(_expand(model.name))
    _check_kind(config, model.name)
    return config


def _check_kind(config: Any, name: str) -> None:
    if config.model_type not in _causal_architectures():
        raise UsageError(
            f"model.name: {name} (model type {config.model_type}) is not a causal language model; gpt2 and llama are"
        )


def _check_keys(config: Any, model: ModelConfig) -> None:
    """Refuse keys that the configuration does not have; transformers would store and ignore them."""
    known = set(config.to_dict()) | set(config.attribute_map) | {"pad_token_id", "bos_token_id", "eos_token_id"}
    for key in model.args:
        if key not in known and not _is_read(config, key):
            close = difflib.get_close_matches(key, sorted(known), n=1)
            hint = f"; did you mean {close[0]}?" if close else ""
            raise UsageError(f"model.args.{key}: the configuration of {config.model_type} has no such key{hint}")


def _is_read(config: Any, key: str) -> bool:
    """Whether the model's code reads a key that the configuration has no default for, such as some have of head_dim."""
    from transformers import MODEL_FOR_CAUSAL_LM_MAPPING

    source = inspect.getsource(inspect.getmodule(MODEL_FOR_CAUSAL_LM_MAPPING[type(config)]) or inspect)
    return f'getattr(config, "{key}"' in source or f"config.{key}," in source


def _check_positions(config: Any, name: str, block_size: int) -> None:
    limit = getattr(config, "max_position_embeddings", None)
    if isinstance(limit, int) and 0 < limit < block_size:
        key = config.attribute_map.get("max_position_embeddings", "max_position_embeddings")
        raise UsageError(
            f"data.block_size is {block_size}, but {name} has {limit} positions (model.args.{key}); make it at most "
            "that, or give the model more"
        )


def _from_weights(source: str, model: ModelConfig, data_args: Mapping[str, Any], block_size: int) -> nn.Module:
    from transformers import AutoConfig, AutoModelForCausalLM

    key = "model.name" if model.pretrained is True else "model.pretrained"
    with reachable(f"the model {source}", key, _REMEDY, local=_is_folder(source)):
        config = AutoConfig.from_pretrained(source)
    _check_kind(config, source)
    if _is_architecture(model.name) and model.name != config.model_type:
        raise UsageError(f"model.name is {model.name}, but {source} holds a model of type {config.model_type}")
    _check_keys(config, model)
    for name, value in model.args.items():
        setattr(config, name, _as_number(value, config, name))
    _check_positions(config, source, block_size)
    if config.vocab_size < data_args["vocab_size"]:
        raise UsageError(
            f"data.tokenizer has {data_args['vocab_size']} tokens, but {source} only {config.vocab_size}; use the "
            "tokenizer that belongs to it"
        )
    with reachable(f"the weights of {source}", key, _REMEDY, local=_is_folder(source)), _quiet():
        load: Any = AutoModelForCausalLM.from_pretrained
        network: nn.Module
        report: dict[str, Any]
        network, report = load(source, config=config, dtype=torch.float32, output_loading_info=True)
    problems = sorted(str(name) for name in {*report["missing_keys"], *report.get("mismatched_keys", ())})
    if problems:
        raise UsageError(f"{key}: {source} has no fitting weights for {problems[0]} ({len(problems)} in all)")
    check_padded_positions(network, source, block_size)
    return network


def _load_file(network: nn.Module, path: Path) -> None:
    """Load one weights file strictly; of tied weights one name is enough."""
    weights: Mapping[str, Tensor] = read_weights(path)
    state = network.state_dict(keep_vars=True)
    if not weights.keys() & state.keys():
        weights = without_prefix(weights, "model.")
    try:
        missing, unexpected = network.load_state_dict(weights, strict=False)
    except RuntimeError as error:  # other shapes
        raise UsageError(f"model.pretrained: {path} does not fit the model: {_first_line(error)}") from error
    loaded = {state[name].data_ptr() for name in weights if name in state}
    lacking = [name for name in missing if state[name].data_ptr() not in loaded]
    if lacking or unexpected:
        problem = f"lacks {listed(lacking)}" if lacking else f"has {listed(unexpected)}, which the model has not"
        raise UsageError(f"model.pretrained: {path} does not fit the model: it {problem}")


def model_folder(path: Path, key: str) -> Path:
    """The model folder that a path means: itself, or `model/` of a run directory."""
    for folder in (path, path / "model"):
        if (folder / "config.json").is_file():
            return folder
    raise UsageError(f"{key}: {path} is no weights file, run directory or model folder (it needs a config.json)")


def load_directory(
    path: Path, data_args: Mapping[str, Any], block_size: int, tokenizer: Tokenizer | None = None
) -> nn.Module:
    """A saved model as it was saved, for evaluation.

    Raises:
        UsageError: There is no complete model, or it does not fit the tokenizer or the block size.
    """
    folder = model_folder(path, str(path))
    _check_tokenizer(folder, tokenizer)
    model = ModelConfig(library="transformers", name=str(folder), pretrained=str(folder))
    return _from_weights(str(folder), model, data_args, block_size)


def save_directory(network: nn.Module, directory: Path, tokenizer: Tokenizer | None) -> None:
    """Write `save_pretrained`'s files and the tokenizer's to an existing folder."""
    save: Any = network
    with _quiet():
        save.save_pretrained(str(directory))
    if tokenizer is not None:
        tokenizer.save(directory)


def _first_line(error: Exception) -> str:
    lines = [line.strip() for line in str(error).splitlines() if line.strip()] or [type(error).__name__]
    return " ".join(lines[:2]) if lines[0].endswith(":") else lines[0]
