"""FISMO where other libraries make the optimizer. Imports them only when it is asked for."""

from torch import nn

from fismo_core.optimizer import FISMO

__all__ = ["register_with_timm", "whole_model"]


def whole_model(model: nn.Module) -> nn.Module:
    """The `param_group_fn` of timm's factory for FISMO, which finds out itself what is a hidden matrix."""
    return model


def register_with_timm() -> None:
    """Let timm's factory know FISMO as `fismo`.

    Then `create_optimizer_v2(model, "fismo", lr=0.02, weight_decay=0.1, param_group_fn=whole_model)` is
    `FISMO(model, lr=0.02, weight_decay=0.1)`; other options of `FISMO` are keyword arguments. Without `param_group_fn`
    timm gives groups of unnamed tensors, of which nobody can say which are embeddings or heads: FISMO refuses them.
    """
    from timm.optim._optim_factory import OptimInfo, default_registry  # which has no public name

    description = "Fisher-structured momentum-orthogonalized: Muon in a Kronecker-factored Fisher metric"
    default_registry.register(OptimInfo(name="fismo", opt_class=FISMO, description=description))
