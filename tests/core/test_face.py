"""What `FISMO` takes: a model, names, tensors; parameters that are unfrozen later; functions; torch's schedulers."""

import copy
import warnings
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from fismo_core import FISMO, AdamW, FisherMetric, Polar, split_parameters
from tests.core.conftest import SmallNet, train_steps


def _net() -> SmallNet:
    torch.manual_seed(3)
    return SmallNet()


def _rules(optimizer: FISMO) -> dict[str, str]:
    return {row.name: row.rule for row in optimizer.plan().rows}


def _weights(model: nn.Module) -> list[Tensor]:
    return [parameter.detach().clone() for parameter in model.parameters()]


def _equal(first: list[Tensor], second: list[Tensor]) -> bool:
    return all(torch.equal(a, b) for a, b in zip(first, second, strict=True))


# -- what it is made of ---------------------------------------------------------------------------------------------


def test_a_model_is_split_as_by_hand() -> None:
    by_hand, by_model = _net(), _net()
    first, second = FISMO(split_parameters(by_hand)), FISMO(by_model)
    assert first.plan() == second.plan()
    assert train_steps(by_hand, first, 4) == train_steps(by_model, second, 4)


def test_weight_decay_leaves_norms_biases_and_embeddings_alone() -> None:
    model = nn.ModuleDict({"embed": nn.Embedding(5, 6), "hidden": nn.Linear(6, 6), "norm": nn.LayerNorm(6)})
    before = copy.deepcopy(model.state_dict())
    for params in (model, model.named_parameters()):
        optimizer = FISMO(params, lr=0.1, weight_decay=0.5, adamw=AdamW(lr=0.1, weight_decay=0.5))
        for parameter in model.parameters():
            parameter.grad = torch.zeros_like(parameter)
        optimizer.step()
        changed = {name for name, value in model.state_dict().items() if not torch.equal(value, before[name])}
        assert changed == {"hidden.weight"}
        model.load_state_dict(before)


def test_names_and_shapes_alone() -> None:
    model = nn.Sequential()
    for name, module in (
        ("tok_emb", nn.Embedding(7, 8)),
        ("block", nn.Linear(8, 8)),
        ("conv", nn.Conv1d(8, 4, 3)),
        ("norm", nn.LayerNorm(4)),
        ("lm_head", nn.Linear(4, 7)),
    ):
        model.add_module(name, module)
    assert _rules(FISMO(model.named_parameters())) == {
        "tok_emb.weight": "adamw",
        **{"block.weight": "matrix", "block.bias": "adamw", "conv.weight": "matrix", "conv.bias": "adamw"},
        **{"norm.weight": "adamw", "norm.bias": "adamw", "lm_head.weight": "adamw", "lm_head.bias": "adamw"},
    }
    rules = {"lm_head.weight": "matrix", "block": "adamw"}
    found = _rules(FISMO(model.named_parameters(), rules=rules))
    assert (found["lm_head.weight"], found["block.weight"], found["conv.weight"]) == ("matrix", "adamw", "matrix")
    with pytest.raises(ValueError, match="match no trainable parameter: nothing"):
        FISMO(model.named_parameters(), rules={"nothing": "adamw"})
    with pytest.raises(ValueError, match="rules go by names"):
        FISMO(model.block.parameters(), rules={"x": "adamw"})
    with pytest.raises(ValueError, match="unknown rule 'muon'"):
        FISMO(model, rules={"block": "muon"})


@pytest.mark.parametrize("wrapped", [False, True])
def test_the_head_of_a_plain_sequence_is_a_head(wrapped: bool) -> None:
    model: nn.Module = nn.Sequential(nn.Flatten(), nn.Linear(8, 6), nn.ReLU(), nn.Linear(6, 3), nn.LogSoftmax(-1))
    if wrapped:
        model = nn.ModuleDict({"net": model})
    weights = [row for row in FISMO(model).plan().rows if "weight" in row.name]
    assert [(row.rule, row.reason) for row in weights] == [("matrix", "linear"), ("adamw", "output head")]
    hidden = nn.Sequential(nn.Linear(8, 6), nn.LayerNorm(6))
    assert _rules(FISMO(hidden))["0.weight"] == "matrix"  # it does not end in a layer
    assert _rules(FISMO(nn.Linear(8, 6)))["weight"] == "matrix"
    attention = nn.Sequential(nn.Linear(8, 8), nn.MultiheadAttention(8, 2))
    assert _rules(FISMO(attention))["1.out_proj.weight"] == "matrix"


# -- parameters that are unfrozen later ----------------------------------------------------------------------------


@pytest.mark.parametrize("names", [False, True])
def test_unfrozen_parameters_are_treated_by_what_they_are_in_the_model(names: bool) -> None:
    model, whole = _net(), _net()
    model.hidden.requires_grad_(False)
    model.head.requires_grad_(False)
    optimizer, reference = FISMO(model), FISMO(whole)
    assert len(optimizer.plan().rows) == 4
    model.requires_grad_(True)
    late = [("hidden.weight", model.hidden.weight), ("hidden.bias", model.hidden.bias), *model.head.named_parameters()]
    optimizer.add_param_group({"params": late if names else [parameter for _, parameter in late]})
    assert _rules(optimizer) == _rules(reference)
    assert train_steps(model, optimizer, 5) == train_steps(whole, reference, 5)
    assert _equal(_weights(model), _weights(whole))
    twin = copy.deepcopy(model)
    again = FISMO(twin)  # other groups, other state
    with pytest.raises(ValueError, match="other parameter groups"):
        again.load_state_dict(optimizer.state_dict())


def test_own_options_go_to_both_rules_of_unfrozen_parameters() -> None:
    model = _net()
    model.hidden.requires_grad_(False)
    optimizer = FISMO(model)
    model.requires_grad_(True)
    optimizer.add_param_group({"params": model.hidden.parameters(), "lr": 0.5})
    assert [(group["rule"], group["lr"]) for group in optimizer.param_groups[2:]] == [("matrix", 0.5), ("adamw", 0.5)]


def test_parameters_that_no_model_knows_can_be_added_with_or_without_names() -> None:
    named, unnamed = FISMO(_net()), FISMO([nn.Parameter(torch.ones(3, 3))])
    named.add_param_group({"params": [nn.Parameter(torch.ones(3, 3))]})
    assert named.plan().rows[-1].name == "added.0"
    unnamed.add_param_group({"params": [("later", nn.Parameter(torch.ones(3, 3)))]})
    assert len(unnamed.plan().rows) == 2
    with pytest.raises(ValueError, match="no matrix"):
        named.add_param_group({"params": [nn.Parameter(torch.ones(3))]})


# -- functions, signs, kernels -------------------------------------------------------------------------------------


def _svd_polar(X: Tensor) -> Tensor:
    U, S, Vh = torch.linalg.svd(X.float(), full_matrices=False)
    return (U * (S[..., None, :] > 0)) @ Vh


def test_an_own_polar_factor_can_be_given_as_a_function() -> None:
    exact, own = _net(), _net()
    first = FISMO(exact, polar="exact", compute_dtype="float32")
    second = FISMO(own, polar=_svd_polar, compute_dtype="float32")
    train_steps(exact, first, 5)
    train_steps(own, second, 5)
    for a, b in zip(_weights(exact), _weights(own), strict=True):
        torch.testing.assert_close(a, b, rtol=0, atol=1e-5)
    saved = second.state_dict()
    assert saved["param_groups"][0]["polar"] == "tests.core.test_face._svd_polar"
    other = FISMO(copy.deepcopy(own), polar=_svd_polar, compute_dtype="float32")
    other.load_state_dict(saved)
    assert other.param_groups[0]["polar"] is _svd_polar
    with pytest.raises(ValueError, match=r"made with polar=tests\.core\.test_face\._svd_polar"):
        FISMO(copy.deepcopy(own)).load_state_dict(saved)


def test_maximize_ascends_along_the_same_path() -> None:
    down, up = _net(), _net()
    first, second = FISMO(down, weight_decay=0.1), FISMO(up, weight_decay=0.1, maximize=True)
    for step in range(5):
        generator = torch.Generator().manual_seed(step)
        for p, q in zip(down.parameters(), up.parameters(), strict=True):
            p.grad = torch.randn(p.shape, generator=generator)
            q.grad = -p.grad
        first.step()
        second.step()
    assert _equal(_weights(down), _weights(up))


def test_the_fused_kernel_of_adamw_takes_the_same_steps() -> None:
    plain, fused = _net(), _net()
    train_steps(plain, FISMO(plain), 6)
    optimizer = FISMO(fused, adamw=AdamW(fused=True))
    train_steps(fused, optimizer, 6)
    for p, q in zip(_weights(plain), _weights(fused), strict=True):
        torch.testing.assert_close(p, q, rtol=0, atol=1e-6)
    saved = optimizer.state_dict()
    resumed_model = copy.deepcopy(fused)
    resumed = FISMO(resumed_model)
    resumed.load_state_dict(saved)
    assert train_steps(fused, optimizer, 3, seed=1) == train_steps(resumed_model, resumed, 3, seed=1)


# -- torch's contract ----------------------------------------------------------------------------------------------


def test_what_is_put_into_the_state_is_what_the_next_step_uses() -> None:
    model, twin = _net(), _net()
    optimizer, other = FISMO(model), FISMO(twin)
    train_steps(model, optimizer, 3)
    train_steps(twin, other, 5, seed=4)
    with torch.no_grad():
        for p, q in zip(model.parameters(), twin.parameters(), strict=True):
            q.copy_(p)
            other.state[q] = {
                name: value.clone() if isinstance(value, Tensor) else value
                for name, value in optimizer.state[p].items()
            }
    assert train_steps(model, optimizer, 4, seed=2) == train_steps(twin, other, 4, seed=2)
    other.state[twin.hidden.weight]["momentum.0"] = torch.zeros(3)
    with pytest.raises(ValueError, match=r"momentum\.0 of hidden\.weight has shape \(3,\), expected \(12, 96\)"):
        train_steps(twin, other, 1)


def test_a_state_that_is_cleared_starts_afresh() -> None:
    model, fresh = _net(), _net()
    optimizer = FISMO(model)
    train_steps(model, optimizer, 3)
    fresh.load_state_dict(model.state_dict())
    optimizer.state.clear()
    assert train_steps(model, optimizer, 4, seed=1) == train_steps(fresh, FISMO(fresh), 4, seed=1)


def test_entries_kept_from_before_are_those_that_steps_change() -> None:
    model = _net()
    optimizer = FISMO(model)
    entry = optimizer.state[model.hidden.weight]
    momentum, root = entry["momentum.0"], entry["P_root.0"]
    assert (entry["step"], float(momentum.norm())) == (0, 0.0)
    train_steps(model, optimizer, 1)
    assert optimizer.state[model.hidden.weight] is entry
    assert entry["step"] == 1
    assert momentum is entry["momentum.0"]
    assert float(momentum.norm()) > 0
    assert not torch.equal(entry["P_root.0"], root)


def test_options_read_back_from_a_state_are_those_that_were_given() -> None:
    metric = FisherMetric(damping=0.3, decay=0.9)
    optimizer = FISMO(_net(), metric=metric, polar=Polar("quintic", 3))
    saved = optimizer.state_dict()
    assert saved["param_groups"][0]["metric"]["damping"] == 0.3  # plain: torch.load takes it with weights_only
    other = FISMO(_net())
    other.load_state_dict(saved)
    assert (other.param_groups[0]["metric"], other.param_groups[0]["polar"]) == (metric, Polar("quintic", 3))
    saved["param_groups"][0]["metric"]["sharpness"] = 1.0
    with pytest.raises(ValueError, match="of another version"):
        other.load_state_dict(saved)


def test_it_is_shown_in_a_few_lines() -> None:
    lines = repr(FISMO(_net(), metric=FisherMetric(damping=0.3))).splitlines()
    assert len(lines) == 4
    assert lines[1].startswith("  FISMO of 2 parameters, lr=0.02, metric=FisherMetric(power=0.25, damping=0.3,")
    assert lines[2] == "  AdamW of 6 parameters, lr=0.003"


# -- schedulers ----------------------------------------------------------------------------------------------------


def _one_cycle(optimizer: FISMO, max_lr: Any) -> torch.optim.lr_scheduler.OneCycleLR:
    return torch.optim.lr_scheduler.OneCycleLR(optimizer, max_lr=max_lr, total_steps=10)


def test_a_scheduler_that_sets_one_rate_for_all_is_warned_of_once() -> None:
    model = _net()
    optimizer = FISMO(model)
    _one_cycle(optimizer, 0.02)
    with pytest.warns(UserWarning, match=r"were given 0\.02, 0\.003: a scheduler or a loop has set one for all"):
        train_steps(model, optimizer, 1)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        train_steps(model, optimizer, 1)


def test_schedulers_that_keep_the_groups_apart_are_not() -> None:
    for make in (
        lambda optimizer: _one_cycle(optimizer, [group["lr"] for group in optimizer.param_groups]),
        lambda optimizer: torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: step / 10),  # zero at first
    ):
        model = _net()
        optimizer = FISMO(model)
        scheduler = make(optimizer)
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            for _ in range(3):
                train_steps(model, optimizer, 1)
                scheduler.step()
    model = _net()
    optimizer = FISMO(model, lr=3e-3, scale="rms")  # one rate for all, as it was given
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        train_steps(model, optimizer, 1)


def test_a_cycled_momentum_is_that_of_both_rules() -> None:
    """OneCycleLR sets `momentum` of every group; of AdamW it is the decay of the first moment."""
    model, twin = _net(), _net()
    optimizer = FISMO(model)
    scheduler = _one_cycle(optimizer, [0.02, 3e-3])
    by_hand = FISMO(twin)
    seen = set()
    for step in range(4):
        for group, other in zip(optimizer.param_groups, by_hand.param_groups, strict=True):
            other["lr"] = group["lr"]
            seen.add(group["momentum"])
            if group["rule"] == "adamw":
                other["betas"] = (group["momentum"], 0.95)
            else:
                other["momentum"] = group["momentum"]
        assert train_steps(model, optimizer, 1, seed=step) == train_steps(twin, by_hand, 1, seed=step)
        scheduler.step()
    assert len(seen) == 4
    assert _equal(_weights(model), _weights(twin))
