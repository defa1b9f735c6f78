"""What of a model is not trained: parameters by name, all but the head, and the statistics of frozen batch norm."""

import difflib
from collections.abc import Sequence
from fnmatch import fnmatchcase
from types import MethodType
from typing import Any

from torch import Tensor, nn

from fismo_cli.errors import UsageError
from fismo_cli.preset.schema import ALL_BUT_HEAD
from fismo_cli.words import counted, listed

__all__ = ["freeze", "trained_parameters"]

RUNNING_MEAN = "running_mean"
"""The buffer by which norms with statistics are known."""


def freeze(model: nn.Module, what: str | Sequence[str]) -> list[str]:
    """Stop training parts of a model, in place: those parameters need no gradient, and optimizers leave them out.

    A norm with statistics (batch norm) all of whose parameters are frozen stays in evaluation mode, also while the rest
    trains: it goes by the statistics that it has, and these stay as they are. One without parameters is frozen by its
    running mean's name.

    Args:
        model: the model.
        what: patterns of parameters' names, as `fnmatch` has them, or `all-but-head`; nothing: all is trained.

    Returns:
        Sentences for the user: how much is trained, and what else there is to know.

    Raises:
        UsageError: a pattern that matches no parameter, a model without a head of its own, or nothing left to train.
    """
    if not what:
        return []
    notes = []
    names: dict[str, Tensor] = dict(model.named_parameters(remove_duplicate=False))
    means = [name for name, _ in model.named_buffers() if name.endswith(RUNNING_MEAN)]
    if what == ALL_BUT_HEAD:
        head = _head_of(model)
        own = {id(parameter) for parameter in head}
        tied = [name for name, parameter in names.items() if id(parameter) in own]
        frozen = {*names, *means} - {*tied}
        if len(tied) > len(head):
            notes.append(
                f"the head is tied: {' and '.join(tied)} are one parameter, which is trained (model.freeze: "
                f"{ALL_BUT_HEAD})"
            )
    else:
        frozen = _matching(what, [*names, *means])
    shared = {id(parameter) for name, parameter in names.items() if name in frozen}
    for parameter in names.values():
        if id(parameter) in shared:
            parameter.requires_grad_(False)
    trained, count = trained_parameters(model), sum(parameter.numel() for parameter in model.parameters())
    if trained == 0:
        raise UsageError("model.freeze: this freezes every parameter of the model; leave some to train")
    kept = _keep_statistics(model, frozen)
    notes.insert(0, f"model.freeze: {trained:,} of {count:,} parameters are trained")
    if kept:
        notes[0] += f", and the statistics of {counted(kept, 'norm')} stay as they are"
    return notes


def trained_parameters(model: nn.Module) -> int:
    """How many numbers of a model are trained."""
    return sum(parameter.numel() for parameter in model.parameters() if parameter.requires_grad)


def _matching(patterns: Sequence[str], names: Sequence[str]) -> set[str]:
    """The names that any of the patterns matches.

    Raises:
        UsageError: patterns that match none, each with names that are close to it.
    """
    problems, frozen = [], set[str]()
    for pattern in patterns:
        matched = {name for name in names if fnmatchcase(name, pattern)}
        frozen |= matched
        if not matched:
            problems.append(f'no parameter is called "{pattern}"{_close_to(pattern, names)}')
    if problems:
        raise UsageError(f"model.freeze: {'; '.join(problems)}")
    return frozen


def _close_to(pattern: str, names: Sequence[str]) -> str:
    stem = pattern.rstrip("*.")
    if inside := [name for name in names if name.startswith(f"{stem}.")]:
        return f'; write "{stem}.*" for the {len(inside)} parameters in it'
    close = difflib.get_close_matches(pattern, names, n=3, cutoff=0.5)
    modules = dict.fromkeys(name[: name.index(".")] + ".*" for name in names if "." in name)
    return f"; did you mean {' or '.join(close)}?" if close else f"; there are {listed(list(modules) or names, 8)}"


def _head_of(model: nn.Module) -> list[nn.Parameter]:
    """The parameters of a model's head: timm's classifiers, or what gives a language model its scores.

    Raises:
        UsageError: it has none.
    """
    for accessor in ("get_classifier", "get_output_embeddings"):
        found: Any = getattr(model, accessor, lambda: None)()
        modules = found if isinstance(found, tuple | list | nn.ModuleList) else [found]
        head = [parameter for module in modules if isinstance(module, nn.Module) for parameter in module.parameters()]
        if head:
            return head
    raise UsageError(
        f"model.freeze: {type(model).__name__} has no head of its own to train alone; name what to freeze by patterns"
    )


def _keep_statistics(model: nn.Module, frozen: set[str]) -> int:
    """Keep frozen norms in evaluation mode, whatever mode the model is set to; returns how many have statistics."""
    kept = 0
    for prefix, module in model.named_modules(remove_duplicate=False):
        if getattr(module, RUNNING_MEAN, None) is None:
            continue
        own = [name for name, _ in module.named_parameters(prefix, recurse=False)]
        if frozen.issuperset(own or [f"{prefix}.{RUNNING_MEAN}"]):
            module.train = MethodType(_stay_in_evaluation, module)  # in a copy, of the copy
            module.eval()
            kept += 1
    return kept


def _stay_in_evaluation(module: nn.Module, mode: bool = True) -> nn.Module:
    return type(module).train(module, False)
