"""Every name that `optimizer.name` may have: built, trained, saved, resumed, and moved by the rate that is given."""

import copy
import functools
import inspect
import json
from typing import Any

import pytest
import pytorch_optimizer
import timm.optim
import torch
from torch import Tensor, nn

from fismo_cli.optimizers import MatrixOptimizer, build_optimizer
from fismo_cli.preset.optimizer_names import NO_WEIGHT_DECAY, RANDOM_NAMES, REFUSED, optimizer_names
from fismo_cli.preset.schema import BaselineConfig, FismoConfig
from fismo_cli.training.checkpoints.state_tree import flatten, rebuild
from fismo_cli.training.distributed.sharding import placed_state
from fismo_cli.training.seeding import restore_rng_state, rng_state, seed_everything

STEPS = 16
"""AdaShift steps by gradients of ten steps ago."""

UNDECAYED = ("token", "scale", "conv.bias", "norm.weight", "norm.bias", "table.weight", "hidden.bias", "head.bias")

DECAYS_BY_ITSELF = {
    "asgd": "its own term `lambd` decays all",
    "focus": "pulls all parameters towards their average",
    "kron": "decays no vector, whatever is asked for",
    "lars": "decays no vector, whatever is asked for",
    "yogi": "starts its averages above zero",
}
"""What cannot be seen by the weights alone to obey the rule."""

SAME_METHOD = [
    {"adadelta", "timm/adadelta"},
    {"adagrad", "timm/adagrad"},
    {"adam", "timm/adam"},
    {"adamax", "timm/adamax"},
    {"adamw", "timm/adamw", "timm/adamwlegacy"},  # timm's own from before torch had it
    {"nadam", "timm/nadam", "timm/nadamlegacy"},
    {"radam", "timm/radam"},
    {"adan", "timm/adan"},
    {"lion", "timm/lion"},
    {"novograd", "timm/novograd"},
    {"timm/nesterov", "timm/sgd"},  # timm's sgd is Nesterov's
    {"timm/nesterovw", "timm/sgdw"},
    {"timm/radamlegacy", "timm/radamw"},  # both decay decoupled
]
"""Names of one method, in the order of the names; no others may come to the same weights."""

STARTS_BY_NORMALISING = {"nero"}
"""Keeps weights at norm one, whatever the rate."""


class Network(nn.Module):
    """A parameter of every kind, one that never gets a gradient and one that gets its first late."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(3, 4, 3)
        self.norm = nn.BatchNorm2d(4)
        self.table = nn.Embedding(5, 6)
        self.token = nn.Parameter(torch.randn(1, 1, 6))
        self.scale = nn.Parameter(torch.tensor(1.5))
        self.hidden = nn.Linear(6, 8)
        self.late = nn.Linear(8, 4, bias=False)
        self.unused = nn.Linear(3, 3)
        self.head = nn.Linear(4, 3)


@functools.cache
def _start() -> Network:
    torch.manual_seed(0)
    network = Network()
    with torch.no_grad():
        for parameter in network.parameters():
            parameter += 0.1 * torch.randn_like(parameter)
        network.head.weight *= 10  # longer than a step
    return network


def _network() -> Network:
    return copy.deepcopy(_start())


@functools.cache
def _noise(step: int) -> list[Tensor]:
    generator = torch.Generator().manual_seed(step)
    size = 100 if step == 12 else 0.1  # the one is a spike
    return [size * torch.randn(parameter.shape, generator=generator) for parameter in _start().parameters()]


def _config(name: str, lr: float | None = None, decay: float = 0.0, **options: Any) -> FismoConfig | BaselineConfig:
    adamw = {"weight_decay": decay, **({} if lr is None else {"lr": lr})}
    if name not in NO_WEIGHT_DECAY:
        options["weight_decay"] = decay
    if name == "fismo":
        return FismoConfig(name="fismo", adamw=adamw, **options, **({} if lr is None else {"lr": lr}))
    return BaselineConfig(name=name, lr=lr, adamw=adamw, **options)


def _set_gradients(network: Network, step: int, zero: tuple[str, ...] = ()) -> None:
    """Noise and a pull towards zero, so that gradients depend on the weights."""
    for (name, parameter), noise in zip(network.named_parameters(), _noise(step), strict=True):
        parameter.grad = noise + 0.2 * parameter.detach()
        if name == "conv.weight":  # before a norm: gradients are orthogonal to the weights
            weight = parameter.detach()
            parameter.grad -= weight * (weight * parameter.grad).sum() / weight.square().sum()
        if name in zero:
            parameter.grad.zero_()
        if name.startswith("unused") or (name.startswith("late") and step < 10):
            parameter.grad = None


def _run(
    optimizer: torch.optim.Optimizer, network: Network, first: int, last: int, share: float = 1.0, **options: Any
) -> None:
    """Steps `first` to `last`, at rates that fall from the peaks at step 0."""
    peaks = [group.setdefault("peak", group["lr"]) for group in optimizer.param_groups]
    for step in range(first, last):
        _set_gradients(network, step, **options)
        for group, peak in zip(optimizer.param_groups, peaks, strict=True):
            group["lr"] = share * peak * (1 - step / STEPS)
        optimizer.step()


def _weights(network: Network) -> list[Tensor]:
    return [parameter.detach().clone() for parameter in network.parameters()]


def _largest_change(network: Network) -> float:
    pairs = zip(network.parameters(), _start().parameters(), strict=True)
    return max(float((new - old).detach().abs().max()) for new, old in pairs)


@functools.cache
def _trained(name: str) -> list[Tensor]:
    network = _network()
    optimizer = build_optimizer(_config(name, decay=0.5), network)
    seed_everything(0)
    before = rng_state()["torch"], rng_state()["numpy"]["pos"]
    _run(optimizer, network, 0, STEPS)
    drawn = not torch.equal(before[0], rng_state()["torch"]) or before[1] != rng_state()["numpy"]["pos"]
    assert drawn == (name in RANDOM_NAMES), "RANDOM_NAMES must say what draws random numbers"
    return _weights(network)


@pytest.mark.parametrize("name", optimizer_names())
def test_trains_and_resumes_to_the_last_digit(name: str) -> None:
    through = _trained(name)
    network = _network()
    optimizer = build_optimizer(_config(name, decay=0.5), network)
    seed_everything(0)
    _run(optimizer, network, 0, STEPS // 2)
    # As a checkpoint holds it (`CheckpointStore`), less the files.
    tensors, document = flatten(
        {"model": network.state_dict(), "optimizer": optimizer.state_dict(), "rng": rng_state()}
    )
    state = rebuild(json.loads(json.dumps(document)), {key: value.clone() for key, value in tensors.items()})

    resumed = _network()
    with torch.no_grad():
        for parameter in resumed.parameters():
            parameter.zero_()
    again = build_optimizer(_config(name, decay=0.5), resumed)
    resumed.load_state_dict(state["model"])
    again.load_state_dict(placed_state(state["optimizer"], again))
    restore_rng_state(state["rng"])
    _run(again, resumed, STEPS // 2, STEPS)

    start = dict(_start().named_parameters())
    for (key, value), expected in zip(resumed.named_parameters(), through, strict=True):
        assert expected.isfinite().all(), key
        assert torch.equal(value, expected), key
        if (name, key) != ("adashift", "late.weight"):  # by gradients of ten steps ago
            assert torch.equal(expected, start[key]) == key.startswith("unused"), key


@pytest.mark.parametrize("name", optimizer_names())
def test_the_rate_and_its_schedule_count(name: str) -> None:
    by_rate, by_schedule = _network(), _network()
    _run(build_optimizer(_config(name, lr=1e-9), by_rate), by_rate, 0, 3)
    _run(build_optimizer(_config(name), by_schedule), by_schedule, 0, 3, share=1e-9)
    if name not in STARTS_BY_NORMALISING:
        assert _largest_change(by_rate) < 1e-4
        assert _largest_change(by_schedule) < 1e-4
    trained = []
    for lr in (0.5, 1.0):
        network = _network()
        _run(build_optimizer(_config(name, lr=lr), network), network, 0, 12)
        trained.append(_weights(network))
    assert not all(torch.equal(one, other) for one, other in zip(*trained, strict=True))


@pytest.mark.parametrize("name", [name for name in optimizer_names() if name not in NO_WEIGHT_DECAY])
def test_weight_decay_leaves_all_but_weights_alone(name: str) -> None:
    """What has no gradient to speak of is moved by decay alone."""
    found = name.startswith("dadapt") or name == "prodigy"  # the rate, of which d0 is the first guess
    options = {"args": {"d0": 1.0}} if found else {}
    kept = {}
    for on in ("matrices", "all"):
        network = _network()
        names = UNDECAYED if found else tuple(key for key, _ in network.named_parameters())
        optimizer = build_optimizer(_config(name, decay=0.5, weight_decay_on=on, **options), network)
        if name in DECAYS_BY_ITSELF:
            decays = [group["weight_decay"] for group in optimizer.param_groups]
            assert decays == ([0.5, 0.0] if on == "matrices" else [0.5])
            continue
        _run(optimizer, network, 0, 3, zero=names)
        pairs = zip(network.named_parameters(), _start().parameters(), strict=True)
        kept[on] = {key for (key, new), old in pairs if torch.allclose(new, old, rtol=1e-6, atol=1e-6)}
    unused = {"unused.weight", "unused.bias", "late.weight"}
    if kept:
        assert kept == {"matrices": {*UNDECAYED, *unused}, "all": unused}


@functools.cache
def _groups_of_equals() -> list[set[str]]:
    groups: list[list[str]] = []
    for name in optimizer_names():
        for group in groups:
            pairs = zip(_trained(name), _trained(group[0]), strict=True)
            if all(torch.allclose(one, other, rtol=1e-5, atol=1e-7) for one, other in pairs):
                group.append(name)
                break
        else:
            groups.append([name])
    return [set(group) for group in groups if len(group) > 1]


def test_no_two_names_give_the_same_weights() -> None:
    assert _groups_of_equals() == SAME_METHOD


@pytest.mark.parametrize("name", ["galore", "fira", "apollo"])
def test_a_low_rank_is_set_and_can_be_set(name: str) -> None:
    """A quarter of the smaller side of most matrices: here of 16, 24 and 24."""
    network = nn.Sequential(nn.Linear(16, 32), nn.Linear(32, 24), nn.Linear(24, 24))
    ranks = []
    for args in ({}, {"rank": 2}):
        optimizer = build_optimizer(BaselineConfig(name=name, args=args), network)
        assert isinstance(optimizer, MatrixOptimizer)
        ranks.append([inner.param_groups[0].get("rank") for inner in optimizer._inner])
    assert ranks == [[6, None], [2, None]]


def test_timm_names_have_the_defaults_of_its_factory() -> None:
    """timm's `create_optimizer_v2` gives momentum 0.9 to whatever has one; the bare classes do not."""
    for name in ("momentum", "sgd", "sgdw", "nlars", "muon", "adafactorbv", "rmsproptf"):
        ours, theirs = _network(), _network()
        optimizer = build_optimizer(BaselineConfig(name=f"timm/{name}", lr=0.01), ours)
        reference = timm.optim.create_optimizer_v2(list(theirs.parameters()), opt=name, lr=0.01)
        for step in range(3):
            for network, one in ((ours, optimizer), (theirs, reference)):
                _set_gradients(network, step)
                one.step()
        assert all(torch.equal(p, q) for p, q in zip(ours.parameters(), theirs.parameters(), strict=True)), name


def test_the_libraries_have_the_names_that_are_offered_or_refused() -> None:
    known = {
        *(name.lower() for name, value in vars(torch.optim).items() if inspect.isclass(value)),
        *pytorch_optimizer.get_supported_optimizers(),
        *(f"timm/{name}" for name in timm.optim.list_optimizers()),
    }
    assert set(optimizer_names()[1:]) | set(REFUSED) <= known
    assert not set(optimizer_names()) & set(REFUSED)
    untold = known - set(optimizer_names()) - set(REFUSED)
    assert untold <= {"optimizer", "rprop", "sparseadam"}  # the base class, and torch's that are not offered
