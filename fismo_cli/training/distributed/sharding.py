"""A model whose weights FSDP2 spreads over the processes of a run: how it is spread, and brought together again.

Each process keeps a share of the rows of every parameter; those of one block are brought together for its forward and
backward pass, and their gradients are summed and spread again.
"""

import copy
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from fismo_cli.blocks import repeated_blocks
from fismo_cli.errors import UsageError
from fismo_cli.preset.schema import TrainConfig
from fismo_cli.training.distributed.used_parameters import UsedParameters
from fismo_cli.training.distributed.world import World
from fismo_core import FISMO
from fismo_core.dtensors import distributed_like, full_tensor

__all__ = ["ShardedModel", "placed_alike", "placed_state", "shard_model"]


@dataclass(frozen=True)
class ShardedModel:
    """What goes with a model that is spread over processes.

    Attributes:
        outline: a copy of the model as it was, without memory for its weights.
        average: another copy, spread in the same way, for an average of the weights; None where there is none.
        used: which of its parameters get gradients.
    """

    outline: nn.Module
    average: nn.Module | None
    used: UsedParameters

    def assembled(self, model: nn.Module, *, keep: bool) -> nn.Module | None:
        """A whole model on the CPU with the weights of a spread one, where it is to be kept; all processes call it."""
        state: dict[str, Tensor] = {}
        for name, value in model.state_dict().items():
            whole = full_tensor(value)  # one after the other: a device may not have room for all
            if keep:
                # A copy: what was gathered may be part of a larger memory, which safetensors refuses to save.
                state[name] = whole.detach().to("cpu", copy=True)
        return _filled(self.outline, state) if keep else None


def shard_model(model: nn.Module, train: TrainConfig, world: World, device: torch.device) -> ShardedModel:
    """Spread a model over the processes of a world, in place and without their talking to each other.

    Args:
        model: whole and the same in all processes; on the CPU, so that no device ever holds all of it.
        train: the loop's settings.
        world: the processes.
        device: of this process; the model is moved there.

    Raises:
        UsageError: if the model has a parameter without rows.
    """
    for name, parameter in model.named_parameters():
        if parameter.dim() == 0:
            raise UsageError(f"train.parallel=fsdp2 cannot spread {name}, which is a single number; use ddp")
    outline = _outline(model)
    average = copy.deepcopy(model) if train.ema_decay is not None else None
    if train.compile:  # before, so that no compiled code holds what FSDP2 does around a block
        for block in repeated_blocks(model) or [model]:
            block.compile()
    for network in (model, average):
        if network is not None:
            _fully_shard(network, train, world, device)
    return ShardedModel(outline, average, UsedParameters(model, world))


def placed_alike(state: Mapping[str, Any], like: Mapping[str, Any]) -> dict[str, Any]:
    """A state of whole tensors, each spread as the one of its name is in another state."""
    return {name: distributed_like(value, like[name]) if name in like else value for name, value in state.items()}


def placed_state(state: dict[str, Any], optimizer: torch.optim.Optimizer) -> dict[str, Any]:
    """An optimizer's state of whole tensors, with what belongs to spread parameters spread as they are.

    FISMO's is given back: it spreads its state itself.
    """
    if isinstance(optimizer, FISMO):
        return state
    parameters = [parameter for group in optimizer.param_groups for parameter in group["params"]]
    order = [key for group in state["param_groups"] for key in group["params"]]
    by_key = dict(zip(order, parameters, strict=True))
    entries = {
        key: {
            name: distributed_like(value, by_key[key])
            if isinstance(value, Tensor) and value.shape == by_key[key].shape and value.dim()
            else value
            for name, value in entry.items()
        }
        if key in by_key
        else entry  # of the optimizer as a whole
        for key, entry in state["state"].items()
    }
    return {**state, "state": entries}


def _fully_shard(network: nn.Module, train: TrainConfig, world: World, device: torch.device) -> None:
    from torch.distributed.device_mesh import DeviceMesh
    from torch.distributed.fsdp import MixedPrecisionPolicy, fully_shard

    half = train.precision == "bfloat16"
    policy = MixedPrecisionPolicy(torch.bfloat16, torch.float32) if half else MixedPrecisionPolicy()
    mesh = DeviceMesh.from_group(world.group, device.type)
    for module in (*repeated_blocks(network), network):
        # Also the outermost one is spread again after its forward pass, which by default stays whole until the backward
        # pass: evaluation has none, and would go on with old weights.
        fully_shard(module, mesh=mesh, reshard_after_forward=True, mp_policy=policy)
    # A parameter that gets no gradient in some processes would make them send unlike amounts, and wait for ever.
    fill_in = getattr(network, "set_reduce_scatter_unused_params", None)  # since torch 2.14
    if fill_in is not None:
        fill_in(True)


def _outline(model: nn.Module) -> nn.Module:
    """A copy without memory for weights; what is tied stays tied."""
    known: dict[int, Any] = {
        id(parameter): nn.Parameter(torch.empty_like(parameter, device="meta"), requires_grad=parameter.requires_grad)
        for parameter in model.parameters()
    }
    return copy.deepcopy(model, known)


def _filled(outline: nn.Module, state: Mapping[str, Tensor]) -> nn.Module:
    network = copy.deepcopy(outline)
    made: dict[int, nn.Parameter] = {}
    for name, empty in list(network.named_parameters(remove_duplicate=False)):
        if id(empty) not in made:
            made[id(empty)] = nn.Parameter(state[name], requires_grad=empty.requires_grad)
        owner, _, attribute = name.rpartition(".")
        network.get_submodule(owner).register_parameter(attribute, made[id(empty)])
    for name, buffer in network.named_buffers(remove_duplicate=False):
        if name in state:
            buffer.copy_(state[name])
    return network
