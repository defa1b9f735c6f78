"""Whether a model of transformers is one of the next token: it never looks ahead, and its training loss is that."""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

from fismo_cli.errors import UsageError, first_line

__all__ = ["check_next_token_model", "check_padded_positions", "padding_hint", "use_own_loss"]

PROBE = 8
"""Tokens with which a model is tried first; where that fails, a whole block of the data's."""


def use_own_loss(network: Any) -> None:
    """Let the model's own code compute the training loss, with what it adds, for labels that are shifted already."""
    network.loss_function = _next_token_loss


def _next_token_loss(logits: Tensor, labels: Tensor, *args: Any, **kwargs: Any) -> Tensor:
    """Mean cross-entropy in nats: logits i predict label i. (transformers' own function shifts the labels first.)"""
    return functional.cross_entropy(logits.float().flatten(0, -2), labels.flatten())


@torch.no_grad()
def check_next_token_model(network: Any, name: str, block_size: int) -> None:
    """Try a model of which `use_own_loss` has been called on a few tokens, in evaluation mode.

    Args:
        network: The model.
        name: What the user calls it.
        block_size: Tokens of a sample.

    Raises:
        UsageError: It takes no tokens alone, a later token changes an earlier prediction (encoders build as language
            models, too), or its loss is not that of the next token.
    """
    training = network.training
    network.eval()
    try:
        with _zeros_filled(network):
            try:
                logits, output, targets = _probe(network, PROBE)
            except Exception:  # some want blocks of a certain length
                logits, output, targets = _probe(network, block_size)
    except Exception as error:  # whatever a model does with a configuration that it was not made for
        reason = f"{type(error).__name__}: {first_line(error, 'no reason given')}"
        hint = padding_hint(network.config.pad_token_id, _default(network.config), error)
        raise UsageError(f"model.name: {name} with these model.args cannot take tokens: {reason}{hint}") from error
    finally:
        network.train(training)
    first, second = logits[0, :-1], logits[1, :-1]
    # Rounding alone stays far below this; a randomly initialised encoder's difference is far above.
    if (first - second).abs().max() > 1e-4 * first.abs().max():
        has_key = hasattr(network.config, "is_decoder") and not network.config.is_decoder
        remedy = "set model.args.is_decoder to true" if has_key else "choose a causal one, such as gpt2 or llama"
        raise UsageError(f"model.name: {name} looks at later tokens; {remedy}")
    _check_loss(name, logits, output, targets)


def _probe(network: Any, length: int) -> tuple[Tensor, Any, Tensor]:
    """Logits of two rows of tokens that differ in the last one, all of the model's output, and the labels."""
    tokens = torch.tensor([0, 1, 2]).repeat(length)[:length].repeat(2, 1)
    tokens[1, -1] = (tokens[1, -1] + 1) % 3
    targets = tokens.roll(-1, dims=1)
    output = network(input_ids=tokens, labels=targets, use_cache=False)
    return output.logits.float(), output, targets


def _check_loss(name: str, logits: Tensor, output: Any, targets: Tensor) -> None:
    """Refuse a loss that takes other logits for a label than those before it, or is missing."""
    if logits.shape[:2] != targets.shape or output.loss is None:
        raise UsageError(f"model.name: {name} has no logits for each token or no loss; choose another language model")
    shifted = functional.cross_entropy(logits[:, :-1].flatten(0, 1), targets[:, 1:].flatten())
    plain = functional.cross_entropy(logits.flatten(0, 1), targets.flatten())
    if abs(output.loss - shifted) < 1e-5 < 1e-3 < abs(plain - shifted):
        raise UsageError(f"model.name: the loss of {name} shifts labels by itself; choose another language model")


@contextmanager
def _zeros_filled(network: nn.Module) -> Iterator[None]:
    """Fill weights (no biases) that begin at zero with noise for a while: they would hide what lies behind them."""
    named = [(name, parameter) for name, parameter in network.named_parameters() if not name.endswith("bias")]
    zeros = [parameter for _, parameter in named if not parameter.any()]
    try:
        for parameter in zeros:
            generator = torch.Generator(parameter.device).manual_seed(parameter.numel())
            parameter.normal_(std=0.1 if parameter.ndim > 1 else 1.0, generator=generator)
        yield
    finally:
        for parameter in zeros:
            parameter.zero_()


def check_padded_positions(network: nn.Module, name: str, block_size: int) -> None:
    """Refuse too few positions in models that count them from behind the padding token's id (RoBERTa and others).

    Raises:
        UsageError: There are too few.
    """
    for path, module in network.named_modules():
        if not path.endswith("position_embeddings") or not isinstance(module, nn.Embedding):
            continue
        room = module.num_embeddings - (-1 if module.padding_idx is None else module.padding_idx) - 1
        if room < block_size:
            raise UsageError(
                f"data.block_size is {block_size}, but {name} has {module.num_embeddings} positions "
                f"(model.args.max_position_embeddings), of which it uses those after number {module.padding_idx}; give "
                f"it {block_size + module.num_embeddings - room} or more"
            )


def padding_hint(pad_token_id: int | None, default: Any, error: Exception) -> str:
    """What to set where a model that wants the id of a padding token was given none; else nothing.

    Args:
        pad_token_id: What it was given.
        default: A configuration of its kind as it is without any argument.
        error: What it says.
    """
    wanted = pad_token_id is None and getattr(default, "pad_token_id", None) is not None
    if not wanted or not (isinstance(error, TypeError | AttributeError) or "pad_token_id" in str(error)):
        return ""
    return ". The tokenizer has no padding token: set model.args.pad_token_id, such as 0"


def _default(config: Any) -> Any:
    try:
        return type(config)()
    except Exception:  # some configurations cannot be made without arguments
        return None
