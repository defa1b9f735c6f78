"""Repeated blocks of models, and computing their activations again: the same training to the last bit."""

import copy

import pytest
import torch
from torch import nn

from fismo_cli.blocks import recompute_activations, repeated_blocks
from fismo_cli.errors import UsageError
from fismo_cli.training.events import StepLogged
from tests.cli.training.fakes import make_trainer


class Block(nn.Module):
    """With everything that a second forward pass could do twice: draws, and statistics of batch norm."""

    def __init__(self, width: int = 8) -> None:
        super().__init__()
        self.inner = nn.Linear(width, width)
        self.norm = nn.BatchNorm1d(width)
        self.drop = nn.Dropout(0.3)
        self.calls = 0

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        self.calls += 1
        return x + self.drop(torch.tanh(self.norm(self.inner(x))))


class Network(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.first = nn.Linear(5, 8)
        self.blocks = nn.ModuleList(Block() for _ in range(3))
        self.head = nn.Linear(8, 2)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = self.first(x)
        for block in self.blocks:
            x = block(x)
        return self.head(x)


class Deep(nn.Sequential):
    def __init__(self, dropout: float) -> None:
        blocks = [Block() for _ in range(2)]
        for block in blocks:
            block.drop.p = dropout
        super().__init__(nn.Linear(4, 8), *blocks, nn.Linear(8, 1))


@pytest.mark.parametrize(
    ("name", "args", "expected", "count"),
    [
        ("vit_tiny_patch16_224", {"img_size": 16, "patch_size": 8, "embed_dim": 16, "num_heads": 2}, "Block", 12),
        ("convnext_atto", {"depths": (1, 1, 2, 1), "dims": (8, 8, 16, 16)}, "ConvNeXtStage", 4),
        ("resnet18", {}, "BasicBlock", 8),
        ("test_efficientnet", {}, "InvertedResidual", None),
    ],
)
def test_blocks_of_image_models(name, args, expected, count):
    import timm

    blocks = repeated_blocks(timm.create_model(name, **args))
    assert {type(block).__name__ for block in blocks} == {expected}
    assert len(blocks) == count if count else len(blocks) > 1


def test_blocks_of_language_models():
    from transformers import AutoConfig, AutoModelForCausalLM

    sizes = {"n_layer": 3, "n_embd": 8, "n_head": 2, "n_positions": 8, "vocab_size": 16}
    model = AutoModelForCausalLM.from_config(AutoConfig.for_model("gpt2", **sizes))
    assert repeated_blocks(model) == list(model.transformer.h)


def test_what_is_no_block():
    assert repeated_blocks(nn.Sequential(nn.Linear(2, 2), nn.Tanh(), nn.Linear(2, 2))) == []
    network = Network()
    network.blocks[1].inner.weight = network.head.weight = nn.Parameter(torch.zeros(8, 8))
    assert repeated_blocks(network) == [network.blocks[0], network.blocks[2]]
    outer = nn.ModuleList(nn.Sequential() for _ in range(2))
    for sequence in outer:
        sequence.append(Network())
    assert repeated_blocks(outer) == [sequence[0] for sequence in outer]  # not the blocks within


def test_computing_again_changes_nothing_but_the_count_of_calls():
    torch.manual_seed(0)
    plain = Network()
    recomputed = copy.deepcopy(plain)
    recompute_activations(recomputed)
    assert list(recomputed.state_dict()) == list(plain.state_dict())
    x = torch.randn(6, 5)
    for network in (plain, recomputed):
        torch.manual_seed(1)
        for _ in range(3):
            network(x).square().sum().backward()
        network.after = torch.rand(1)
    assert torch.equal(plain.after, recomputed.after)  # as many draws
    for name, parameter in plain.named_parameters():
        assert torch.equal(parameter.grad, recomputed.get_parameter(name).grad), name
    for name, buffer in plain.named_buffers():
        assert torch.equal(buffer, recomputed.get_buffer(name)), name
    assert [block.calls for block in plain.blocks] == [3, 3, 3]
    assert [block.calls for block in recomputed.blocks] == [6, 6, 6]
    recomputed.eval()
    assert torch.equal(recomputed(x), plain.eval()(x))


def test_less_is_kept_for_the_backward_pass():
    def kept(network: nn.Module) -> int:
        sizes = {}

        def count(tensor: torch.Tensor) -> torch.Tensor:
            sizes[tensor.untyped_storage().data_ptr()] = tensor.untyped_storage().nbytes()
            return tensor

        with torch.autograd.graph.saved_tensors_hooks(count, lambda tensor: tensor):
            network(torch.randn(200, 5))
        return sum(sizes.values())

    plain, recomputed = Network(), Network()
    recompute_activations(recomputed)
    assert kept(recomputed) < kept(plain) / 2


def test_a_model_without_blocks_is_refused():
    with pytest.raises(UsageError, match=r"train.activation_checkpointing: Linear has no repeated blocks"):
        recompute_activations(nn.Linear(2, 2))


def test_batch_norm_is_refused_where_it_is_compiled():
    with pytest.raises(UsageError, match="batch norm would take its statistics twice"):
        recompute_activations(Network(), compiled=True)


@pytest.mark.parametrize("dropout", [0.0, 0.3])
def test_a_run_is_the_same_to_the_last_bit(dropout):
    def losses(**train: object) -> list[float]:
        trainer = make_trainer(build=lambda: Deep(dropout), **train)
        return [event.loss for event in trainer.fit() if isinstance(event, StepLogged)]

    assert losses(activation_checkpointing=True, log_every=1) == losses(log_every=1)
