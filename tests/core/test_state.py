"""FISMO's state as torch's other tools see it: kept in memory, asked for before the first step, any torch default."""

import copy
from collections.abc import Iterator

import pytest
import torch
from torch import Tensor, nn
from torch.distributed.checkpoint.state_dict import (
    StateDictOptions,
    get_optimizer_state_dict,
    set_optimizer_state_dict,
)

from fismo_core import FISMO, Mars, diagnose, split_parameters
from fismo_core.inverse_roots import _schedule
from tests.core.conftest import SmallNet, train_steps

KINDS = {"matrices and AdamW": None, "matrices alone": None, "AdamW alone": {".": "adamw"}}


def _made(kind: str) -> tuple[nn.Module, FISMO]:
    torch.manual_seed(3)
    if kind == "matrices alone":
        model: nn.Module = nn.Sequential(nn.Flatten(), nn.Linear(32, 8, bias=False), nn.Linear(8, 3, bias=False))
        return model, FISMO(model.parameters())
    model = SmallNet()
    return model, FISMO(split_parameters(model, KINDS[kind]))


def _leaves(value: object) -> Iterator[object]:
    if isinstance(value, dict):
        for key in sorted(value, key=str):
            yield from (str(key), *_leaves(value[key]))
    elif isinstance(value, list | tuple):
        for item in value:
            yield from _leaves(item)
    else:
        yield value


def _same(first: object, second: object) -> bool:
    pairs = zip(_leaves(first), _leaves(second), strict=True)
    return all(torch.equal(a, b) if isinstance(a, Tensor) else a == b for a, b in pairs)


@pytest.mark.parametrize("kind", KINDS)
def test_a_state_kept_in_memory_brings_back_the_very_steps(kind: str) -> None:
    model, optimizer = _made(kind)
    mars = Mars(optimizer)
    train_steps(model, optimizer, 3)
    kept, kept_mars = optimizer.state_dict(), mars.state_dict()
    weights = {name: value.clone() for name, value in model.state_dict().items()}
    as_saved = copy.deepcopy(kept)
    losses = train_steps(model, optimizer, 9, seed=1)
    assert _same(kept, as_saved)  # later steps have not changed it
    after = optimizer.state_dict()
    model.load_state_dict(weights)
    optimizer.load_state_dict(kept)
    mars.load_state_dict(kept_mars)
    assert _same(optimizer.state_dict(), as_saved)
    assert train_steps(model, optimizer, 9, seed=1) == losses
    assert _same(optimizer.state_dict(), after)
    assert _same(kept, as_saved)  # nor what was loaded from it


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("steps", [0, 3])
def test_torch_s_distributed_state_takes_no_step(kind: str, steps: int) -> None:
    model, optimizer = _made(kind)
    train_steps(model, optimizer, steps)
    optimizer.zero_grad()
    weights, before = copy.deepcopy(model.state_dict()), optimizer.state_dict()
    found = get_optimizer_state_dict(model, optimizer)
    assert _same(optimizer.state_dict(), before)
    assert _same(model.state_dict(), weights)
    assert found["state"].keys() == {name for name, _ in model.named_parameters()}
    set_optimizer_state_dict(model, optimizer, found)
    assert _same(optimizer.state_dict(), before)
    other_model, other = _made(kind)
    other_model.load_state_dict(weights)
    full = get_optimizer_state_dict(model, optimizer, options=StateDictOptions(full_state_dict=True))
    set_optimizer_state_dict(other_model, other, full)
    assert _same(other.state_dict(), before)
    assert train_steps(other_model, other, 3) == train_steps(model, optimizer, 3)


def test_torch_s_default_device_is_not_asked_for_anything() -> None:
    model, optimizer = _made("matrices and AdamW")
    mars = Mars(optimizer)
    right = train_steps(model, optimizer, 4)
    there_model, there = _made("matrices and AdamW")
    there_mars = Mars(there)
    inputs = [torch.randn(8, 2, 4, 4) for _ in range(4)]
    for net, steps in ((model, optimizer), (there_model, there)):
        if net is there_model:
            assert train_steps(net, there, 4) == right
            _schedule.cache_clear()
            torch.set_default_device("meta")
        try:
            if net is there_model:
                there.load_state_dict(there.state_dict())
                there_mars.load_state_dict(there_mars.state_dict())
                diagnose(there)
            for x in inputs:
                steps.zero_grad()
                net(x).square().mean().backward()
                steps.step()
        finally:
            torch.set_default_device(None)
    assert _same(model.state_dict(), there_model.state_dict())
    assert _same(optimizer.state_dict(), there.state_dict())
    assert _same(mars.state_dict(), there_mars.state_dict())
    # One that is made there, too: its state goes where its parameters are.
    torch.set_default_device("meta")
    try:
        fresh_model = copy.deepcopy(model)
        fresh = FISMO(split_parameters(fresh_model))
        fresh_model(inputs[0]).square().mean().backward()
        fresh.step()
    finally:
        torch.set_default_device(None)
    assert {str(value.device) for value in _leaves(fresh.state_dict()) if isinstance(value, Tensor)} == {"cpu"}


@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16])
@pytest.mark.parametrize(("kind", "steps"), [("matrices and AdamW", 12), ("AdamW alone", 260)])
def test_torch_s_default_dtype_changes_nothing(dtype: torch.dtype, kind: str, steps: int) -> None:
    model, optimizer = _made(kind)
    inputs = [torch.randn(8, 2, 4, 4) for _ in range(steps)]
    other_model = copy.deepcopy(model)
    for net in (model, other_model):
        _schedule.cache_clear()
        torch.set_default_dtype(torch.float32 if net is model else dtype)
        try:
            stepped = FISMO(split_parameters(net, KINDS[kind]), weight_decay=0.1)
            for x in inputs:
                stepped.zero_grad()
                net(x).square().mean().backward()
                stepped.step()
        finally:
            torch.set_default_dtype(torch.float32)
        optimizer = optimizer if net is other_model else stepped
    assert _same(model.state_dict(), other_model.state_dict())
    assert _same(optimizer.state_dict(), stepped.state_dict())


def test_steps_in_inference_mode_and_deterministic_ones_are_the_same() -> None:
    right_model, right = _made("matrices and AdamW")
    inputs = [torch.randn(8, 2, 4, 4) for _ in range(4)]
    model, optimizer = _made("matrices and AdamW")
    for net, steps in ((right_model, right), (model, optimizer)):
        for number, x in enumerate(inputs):
            steps.zero_grad()
            net(x).square().mean().backward()
            if net is model and number % 2:
                torch.use_deterministic_algorithms(True)
                try:
                    with torch.inference_mode():
                        steps.step()
                finally:
                    torch.use_deterministic_algorithms(False)
            else:
                steps.step()
    assert _same(right_model.state_dict(), model.state_dict())
    assert _same(right.state_dict(), optimizer.state_dict())
