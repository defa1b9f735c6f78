"""FISMO as an ordinary torch optimizer: groups, state, checkpoints, AMP, closures, schedulers, copies."""

import copy
import inspect
import io
import pickle
from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from fismo_core import FISMO, PAPER, AdamW, FisherMetric, FismoOptions, Polar, diagnose, split_parameters
from fismo_core.checked import OptionError
from tests.core.conftest import SmallNet, train_steps


def _net(dtype: torch.dtype = torch.float32) -> SmallNet:
    torch.manual_seed(3)
    return SmallNet().to(dtype)


def _fismo(model: nn.Module, **options: Any) -> FISMO:
    return FISMO(split_parameters(model), 0.02, **{"compute_dtype": "float32", **options})


def _same(first: dict[str, Any], second: dict[str, Any]) -> bool:
    return first.keys() == second.keys() and all(
        torch.equal(torch.as_tensor(first[key]), torch.as_tensor(second[key])) for key in first
    )


def test_loss_falls() -> None:
    model = _net()
    x = torch.randn(64, 2, 4, 4)
    y = x.mean((2, 3)).argmax(1)
    optimizer = _fismo(model)
    losses = []
    for _ in range(200):
        optimizer.zero_grad()
        loss = nn.functional.cross_entropy(model(x), y)
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    assert losses[-1] < 0.05 < losses[0]


def test_adamw_part_equals_torch_adamw_bit_for_bit() -> None:
    ours, theirs = _net(), _net()
    rules = {".": "adamw"}
    optimizer = FISMO(split_parameters(ours, rules), adamw=AdamW(lr=1e-2, betas=(0.8, 0.9), eps=1e-6, weight_decay=0.1))
    train_steps(ours, optimizer, 5)
    train_steps(theirs, torch.optim.AdamW(theirs.parameters(), 1e-2, (0.8, 0.9), 1e-6, 0.1), 5)
    for p, q in zip(ours.parameters(), theirs.parameters(), strict=True):
        assert torch.equal(p, q)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float64])
@pytest.mark.parametrize("through_file", [False, True])
def test_state_dict_round_trip_is_bit_exact(dtype: torch.dtype, through_file: bool) -> None:
    model = _net(dtype)
    optimizer = _fismo(model)
    train_steps(model, optimizer, 4)
    saved = optimizer.state_dict()
    if through_file:
        file = io.BytesIO()
        torch.save(saved, file)
        file.seek(0)
        saved = torch.load(file, weights_only=True)
    other = copy.deepcopy(model)
    resumed = _fismo(other)
    resumed.load_state_dict(saved)
    expected_dtype = torch.float64 if dtype == torch.float64 else torch.float32
    assert resumed.state_dict()["state"][0]["momentum.0"].dtype == expected_dtype
    assert train_steps(model, optimizer, 7, seed=9) == train_steps(other, resumed, 7, seed=9)
    for p, q in zip(model.parameters(), other.parameters(), strict=True):
        assert torch.equal(p, q)


def test_state_dict_is_independent_of_the_optimizer_after_it_was_taken() -> None:
    model = _net()
    optimizer = _fismo(model)
    train_steps(model, optimizer, 2)
    saved = optimizer.state_dict()
    before = saved["state"][0]["momentum.0"].clone()
    train_steps(model, optimizer, 2)
    assert torch.equal(saved["state"][0]["momentum.0"], before)


def test_state_is_complete_before_the_first_step() -> None:
    fresh = _fismo(_net()).state_dict()["state"]
    model = _net()
    optimizer = _fismo(model)
    train_steps(model, optimizer, 1)
    stepped = optimizer.state_dict()["state"]
    assert {k: {n: torch.as_tensor(v).shape for n, v in s.items()} for k, s in fresh.items()} == {
        k: {n: torch.as_tensor(v).shape for n, v in s.items()} for k, s in stepped.items()
    }


def test_a_state_that_does_not_fit_changes_nothing() -> None:
    model = _net()
    optimizer = _fismo(model)
    train_steps(model, optimizer, 2)
    good = optimizer.state_dict()
    broken = copy.deepcopy(good)
    del broken["state"][0]["momentum.0"]
    wrong_shape = copy.deepcopy(good)
    wrong_shape["state"][0]["P.0"] = torch.zeros(2, 2)
    other_rules = copy.deepcopy(good)
    other_rules["param_groups"][0]["rule"] = "adamw"
    for bad, message in ((broken, "has no momentum.0"), (wrong_shape, "expected"), (other_rules, "other rules")):
        with pytest.raises(ValueError, match=message):
            optimizer.load_state_dict(bad)
    after = optimizer.state_dict()
    for key, entry in good["state"].items():
        assert _same(entry, after["state"][key])


@pytest.mark.parametrize("copier", [copy.deepcopy, lambda pair: pickle.loads(pickle.dumps(pair))])
def test_deep_copy_and_pickle_continue_alike(copier: Any) -> None:
    model = _net()
    optimizer = _fismo(model)
    train_steps(model, optimizer, 3)
    model2, optimizer2 = copier((model, optimizer))
    assert train_steps(model, optimizer, 6, seed=5) == train_steps(model2, optimizer2, 6, seed=5)
    optimizer2.add_param_group({"params": [("new", nn.Parameter(torch.zeros(2)))], "rule": "adamw"})
    assert optimizer2.param_groups[-1]["lr"] == 3e-3


def test_a_parameter_without_gradient_is_inert() -> None:
    frozen, moving = nn.Parameter(torch.ones(4, 6)), nn.Parameter(torch.ones(4, 6))
    vector = nn.Parameter(torch.ones(3))
    optimizer = FISMO(
        [{"params": [frozen, moving]}, {"params": [vector], "rule": "adamw"}],
        weight_decay=0.5,
        metric=FisherMetric(refresh_every=3),
    )
    before = copy.deepcopy(optimizer.state_dict()["state"])
    for _ in range(2):
        moving.grad = torch.randn(4, 6)
        optimizer.step()
    after = optimizer.state_dict()["state"]
    assert torch.equal(frozen, torch.ones(4, 6))
    assert torch.equal(vector, torch.ones(3))
    for key in (0, 2):
        assert _same(before[key], after[key])
    assert not torch.equal(moving, torch.ones(4, 6))


def test_gradients_are_not_changed() -> None:
    model = _net()
    optimizer = _fismo(model)
    nn.functional.cross_entropy(model(torch.randn(4, 2, 4, 4)), torch.tensor([0, 1, 2, 0])).backward()
    before = [p.grad.clone() for p in model.parameters() if p.grad is not None]
    optimizer.step()
    assert all(torch.equal(g, p.grad) for g, p in zip(before, model.parameters(), strict=True))


def test_closure_runs_with_gradients_and_returns_its_loss() -> None:
    W = nn.Parameter(torch.randn(3, 3))
    optimizer = FISMO([W])

    def closure() -> Tensor:
        optimizer.zero_grad()
        loss = W.square().sum()
        loss.backward()
        return loss

    before = W.square().sum().item()
    assert optimizer.step(closure).item() == pytest.approx(before)
    assert W.square().sum() < before


def test_schedulers_scale_both_rules() -> None:
    optimizer = _fismo(_net(), adamw=AdamW(lr=1e-3))
    scheduler = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: 0.5**step)
    train_steps(_net(), optimizer, 1)
    scheduler.step()
    assert [group["lr"] for group in optimizer.param_groups] == pytest.approx([0.01, 5e-4])


def test_the_scheduled_rate_is_the_length_of_the_step() -> None:
    W = nn.Parameter(torch.zeros(4, 4))
    optimizer = FISMO([W], 0.1, polar="exact", compute_dtype="float32")
    scheduler = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: 0.5**step)
    lengths = []
    for _ in range(3):
        before = W.detach().clone()
        W.grad = torch.randn(4, 4)
        optimizer.step()
        scheduler.step()
        lengths.append(float((W.detach() - before).norm()))
    assert lengths == pytest.approx([0.2, 0.1, 0.05], rel=1e-4)  # the polar factor of a 4 x 4 matrix has norm 2


def test_accumulated_gradients_equal_one_large_batch() -> None:
    whole, parts = _net(torch.float64), _net(torch.float64)
    x, y = torch.randn(16, 2, 4, 4, dtype=torch.float64), torch.randint(0, 3, (16,))
    for model, pieces in ((whole, 1), (parts, 4)):
        optimizer = _fismo(model)
        for _ in range(6):
            optimizer.zero_grad()
            for a, b in zip(x.chunk(pieces), y.chunk(pieces), strict=True):
                (nn.functional.cross_entropy(model(a), b) / pieces).backward()
            optimizer.step()
    for p, q in zip(whole.parameters(), parts.parameters(), strict=True):
        torch.testing.assert_close(p, q, rtol=0, atol=1e-8)


def test_grad_scaler_unscales_and_skips_infinite_steps() -> None:
    plain, scaled = _net(), _net()
    x, y = torch.randn(16, 2, 4, 4), torch.randint(0, 3, (16,))
    optimizer, with_scaler = _fismo(plain), _fismo(scaled)
    scaler = torch.amp.GradScaler("cpu", init_scale=1024.0)
    for step in range(5):
        if step == 2:  # an overflow: the scaler must leave weights and state alone
            before = [p.clone() for p in scaled.parameters()]
            with_scaler.zero_grad()
            scaler.scale(nn.functional.cross_entropy(scaled(x), y) * torch.inf).backward()
            scaler.step(with_scaler)
            scaler.update()
            assert all(torch.equal(a, b) for a, b in zip(before, scaled.parameters(), strict=True))
        optimizer.zero_grad()
        nn.functional.cross_entropy(plain(x), y).backward()
        optimizer.step()
        with_scaler.zero_grad()
        scaler.scale(nn.functional.cross_entropy(scaled(x), y)).backward()
        scaler.step(with_scaler)
        scaler.update()
    assert with_scaler.skipped_gradients() == 0
    for p, q in zip(plain.parameters(), scaled.parameters(), strict=True):
        torch.testing.assert_close(p, q, rtol=0, atol=1e-6)


def test_step_inside_autocast_computes_as_outside() -> None:
    inside, outside = nn.Parameter(torch.zeros(8, 8)), nn.Parameter(torch.zeros(8, 8))
    G = torch.randn(8, 8)
    for W in (inside, outside):
        W.grad = G.clone()
    FISMO([outside], compute_dtype="float32").step()
    optimizer = FISMO([inside], compute_dtype="float32")
    with torch.autocast("cpu", dtype=torch.bfloat16):
        optimizer.step()
    assert torch.equal(inside, outside)


def test_add_param_group_with_its_own_options() -> None:
    first, second = nn.Parameter(torch.zeros(4, 4)), nn.Parameter(torch.zeros(4, 4))
    optimizer = FISMO([first], 0.1)
    first.grad = torch.eye(4)
    optimizer.step()
    optimizer.add_param_group(
        {"params": [second], "lr": 0.5, "metric": FisherMetric(power=0.0), "polar": "exact", "momentum": 0.0}
    )
    second.grad = torch.diag(torch.tensor([1.0, 2.0, 3.0, 4.0]))
    optimizer.step()
    torch.testing.assert_close(second.detach(), -0.5 * torch.eye(4))
    assert "P.0" not in optimizer.state_dict()["state"][1]


def test_channels_last_convolutions_step_like_contiguous_ones() -> None:
    plain, last = _net(), _net().to(memory_format=torch.channels_last)
    train_steps(plain, _fismo(plain), 4)
    train_steps(last, _fismo(last), 4)
    for p, q in zip(plain.parameters(), last.parameters(), strict=True):
        torch.testing.assert_close(p, q, rtol=0, atol=1e-5)


def test_weight_decay_is_decoupled_and_scheduled() -> None:
    W = nn.Parameter(torch.ones(3, 3))
    optimizer = FISMO([W], 0.2, weight_decay=0.5)
    W.grad = torch.zeros(3, 3)
    optimizer.step()
    torch.testing.assert_close(W.detach(), torch.full((3, 3), 0.9))
    optimizer.param_groups[0]["lr"] = 0.4
    optimizer.step()
    torch.testing.assert_close(W.detach(), torch.full((3, 3), 0.9 * 0.8))


@pytest.mark.parametrize("cautious", [False, True])
def test_a_non_finite_gradient_does_not_decay_the_weights(cautious: bool) -> None:
    W = nn.Parameter(torch.ones(6, 3))
    layouts = [{"stacked": False, "transposed": False, "rows": [3, 3]}]
    optimizer = FISMO([{"params": [W], "layouts": layouts}], 0.1, weight_decay=0.5, cautious=cautious)
    W.grad = torch.full((6, 3), torch.nan)
    optimizer.step()
    assert torch.equal(W, torch.ones(6, 3))
    assert optimizer.skipped_gradients() == 2


def test_cautious_weight_decay_acts_only_where_the_step_goes_to_zero() -> None:
    W = nn.Parameter(torch.tensor([[1.0, -1.0], [-1.0, 1.0]]))
    G = torch.tensor([[1.0, 1.0], [-1.0, -1.0]])
    plain, decayed = nn.Parameter(W.detach().clone()), nn.Parameter(W.detach().clone())
    for p, decay in ((plain, 0.0), (decayed, 0.5)):
        optimizer = FISMO([p], 0.1, weight_decay=decay, cautious=True, polar="exact", metric=FisherMetric(power=0.0))
        p.grad = G.clone()
        optimizer.step()
    change = (decayed - plain).detach()
    towards_zero = (W.detach() - plain.detach()) * W.detach() > 0
    assert towards_zero.any()
    assert not towards_zero.all()
    torch.testing.assert_close(change, torch.where(towards_zero, -0.05 * W.detach(), 0.0))


def _two_matrices(interval: int) -> tuple[list[nn.Parameter], FISMO]:
    pair = [nn.Parameter(torch.zeros(3, 3, dtype=torch.float64)) for _ in range(2)]
    return pair, FISMO(pair, 0.1, metric=FisherMetric(refresh_every=interval))


def test_roots_are_renewed_by_a_parameters_own_clock_whatever_its_neighbours_do() -> None:
    """A has gradients in odd steps only; alone or next to a B of its shape, it must move alike, with fresh roots."""
    gradients = [torch.randn(3, 3, dtype=torch.float64) for _ in range(8)]
    (A, B), together = _two_matrices(2)
    alone = nn.Parameter(torch.zeros(3, 3, dtype=torch.float64))
    single = FISMO([alone], 0.1, metric=FisherMetric(refresh_every=2))
    for step, G in enumerate(gradients):
        A.grad = alone.grad = G if step % 2 else None
        B.grad = gradients[-step]
        before = together.state_dict()["state"][0]
        together.step()
        single.step()
        if step % 2 == 0:
            after = together.state_dict()["state"][0]
            assert _same(before, after)
    assert torch.equal(A, alone)
    root = single.state_dict()["state"][0]["P_root.0"]
    assert not torch.equal(root, torch.eye(3, dtype=torch.float64))


def test_the_first_gradient_brings_roots_even_if_it_comes_late() -> None:
    (A, B), optimizer = _two_matrices(5)
    for step in range(2):
        A.grad = torch.randn(3, 3, dtype=torch.float64) if step else None
        B.grad = torch.randn(3, 3, dtype=torch.float64)
        optimizer.step()
    assert not torch.equal(optimizer.state_dict()["state"][0]["P_root.0"], torch.eye(3, dtype=torch.float64))


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float64])
def test_a_model_converted_after_construction_trains_like_one_converted_before(dtype: torch.dtype) -> None:
    late, early = _net(), _net().to(dtype)
    optimizer = _fismo(late)
    late.to(dtype)
    assert train_steps(late, optimizer, 4) == train_steps(early, _fismo(early), 4)


def test_state_follows_a_model_that_is_converted_between_steps() -> None:
    model = _net()
    optimizer = _fismo(model, metric=FisherMetric(roots="eigh"))
    train_steps(model, optimizer, 5)
    twin = copy.deepcopy(model).double()
    other = _fismo(twin, metric=FisherMetric(roots="eigh"))
    saved = optimizer.state_dict()
    model.double()
    other.load_state_dict(saved)
    assert train_steps(model, optimizer, 5) == train_steps(twin, other, 5)
    assert optimizer.state_dict()["state"][0]["momentum.0"].dtype == torch.float64
    assert optimizer.state[model.head.weight]["exp_avg"].dtype == torch.float64


def test_state_dict_hooks_see_and_change_the_whole_state() -> None:
    model = _net()
    optimizer = _fismo(model)
    train_steps(model, optimizer, 2)
    seen: list[Any] = []
    optimizer.register_state_dict_post_hook(lambda _, state: seen.append(sorted(state["state"][0])))
    saved = optimizer.state_dict()
    assert "momentum.0" in seen[0]
    assert "P.0" in seen[0]

    def double(_: Any, state: dict[str, Any]) -> dict[str, Any]:
        changed = copy.deepcopy(state)
        changed["state"][0]["momentum.0"] *= 2
        return changed

    other = _fismo(_net())
    other.register_load_state_dict_pre_hook(double)
    after: list[Tensor] = []
    other.register_load_state_dict_post_hook(lambda o: after.append(o.state_dict()["state"][0]["momentum.0"]))
    other.load_state_dict(saved)
    assert torch.equal(after[0], 2 * saved["state"][0]["momentum.0"])


def test_options_that_decide_the_state_cannot_change_later() -> None:
    W = nn.Parameter(torch.zeros(3, 3))
    optimizer = FISMO([W])
    W.grad = torch.randn(3, 3)
    optimizer.param_groups[0]["metric"] = FisherMetric(damping=0.3)  # may change
    optimizer.step()
    optimizer.param_groups[0]["metric"] = FisherMetric(power=0.0)
    with pytest.raises(RuntimeError, match="make a new optimizer"):
        optimizer.step()


def test_loading_takes_the_saved_options_and_checks_them() -> None:
    W = nn.Parameter(torch.zeros(3, 3))
    saved = FISMO([W], metric=FisherMetric(power=0.5)).state_dict()
    optimizer = FISMO([W], metric=FisherMetric(power=0.0))
    optimizer.load_state_dict(saved)
    W.grad = torch.randn(3, 3)
    optimizer.step()
    assert optimizer.param_groups[0]["metric"].power == 0.5
    saved["param_groups"][0]["momentum"] = 7.0
    with pytest.raises(ValueError, match="momentum must be"):
        optimizer.load_state_dict(saved)
    del saved["param_groups"][0]["momentum"]
    with pytest.raises(ValueError, match="has no momentum"):
        optimizer.load_state_dict(saved)


def test_a_group_that_is_refused_leaves_no_trace() -> None:
    model = _net()
    optimizer = _fismo(model)
    with pytest.raises(ValueError, match="no matrix"):
        optimizer.add_param_group({"params": [("vector", nn.Parameter(torch.zeros(3)))]})
    assert len(optimizer.param_groups) == 2
    train_steps(model, optimizer, 1)
    optimizer.load_state_dict(optimizer.state_dict())


def test_empty_parameters_are_stepped_over() -> None:
    empty, W = nn.Parameter(torch.zeros(0, 4)), nn.Parameter(torch.zeros(4, 4))
    optimizer = FISMO([empty, W], weight_decay=0.1)
    empty.grad, W.grad = torch.zeros(0, 4), torch.randn(4, 4)
    optimizer.step()
    assert W.any()


def test_products_are_full_precision_in_the_step_and_the_setting_comes_back(monkeypatch: pytest.MonkeyPatch) -> None:
    from fismo_core import update

    real, seen = update.fismo_update, []

    def spy(*arguments: Any, **options: Any) -> Any:
        seen.append(torch.backends.cuda.matmul.fp32_precision)
        return real(*arguments, **options)

    monkeypatch.setattr(update, "fismo_update", spy)
    W = nn.Parameter(torch.zeros(3, 3))
    W.grad = torch.randn(3, 3)
    torch.backends.cuda.matmul.fp32_precision = "tf32"
    try:
        FISMO([W]).step()
        assert torch.backends.cuda.matmul.fp32_precision == "tf32"
    finally:
        torch.backends.cuda.matmul.fp32_precision = "none"
    assert seen == ["ieee"]


def test_unfit_parameters_and_gradients_are_refused() -> None:
    with pytest.raises(ValueError, match=r"is no matrix.*the model itself"):
        FISMO([nn.Parameter(torch.zeros(3))])
    with pytest.raises(TypeError, match="complex64"):
        FISMO([nn.Parameter(torch.zeros(3, 3, dtype=torch.complex64))])
    embedding = nn.Embedding(4, 3, sparse=True)
    optimizer = FISMO([{"params": list(embedding.parameters()), "rule": "adamw"}])
    embedding(torch.tensor([1])).sum().backward()
    with pytest.raises(RuntimeError, match="sparse"):
        optimizer.step()
    matrix = FISMO(embedding.parameters())
    with pytest.raises(RuntimeError, match="sparse"):
        matrix.step()
    with pytest.raises(ValueError, match="one layout for each"):
        FISMO([{"params": [nn.Parameter(torch.zeros(2, 2))], "layouts": []}])


@pytest.mark.parametrize(
    ("option", "make"),
    [
        ("lr", lambda: {"lr": -1.0}),
        ("lr", lambda: {"lr": "0.1"}),
        ("momentum", lambda: {"momentum": 1.0}),
        ("nesterov", lambda: {"nesterov": "no"}),
        ("weight_decay", lambda: {"weight_decay": -1.0}),
        ("scale", lambda: {"scale": "muon"}),
        ("compute_dtype", lambda: {"compute_dtype": "float16"}),
        ("metric", lambda: {"metric": {"power": 0.5}}),
        ("power", lambda: {"metric": FisherMetric(power=0.6)}),
        ("power", lambda: {"metric": FisherMetric(power=0.3)}),  # by polynomials
        ("damping", lambda: {"metric": FisherMetric(damping=-0.1)}),
        ("damping", lambda: {"metric": FisherMetric(damping=0.0)}),
        ("damping", lambda: {"metric": FisherMetric(damping=float("nan"))}),
        ("damping_scale", lambda: {"metric": FisherMetric(damping_scale="trace")}),
        ("decay", lambda: {"metric": FisherMetric(decay=1.5)}),
        ("refresh_every", lambda: {"metric": FisherMetric(refresh_every=0)}),
        ("refresh_every", lambda: {"metric": FisherMetric(refresh_every=True)}),
        ("max_ratio", lambda: {"metric": FisherMetric(max_ratio=0.5)}),
        ("momentum_space", lambda: {"metric": FisherMetric(momentum_space="both")}),
        ("method", lambda: {"polar": "svd"}),
        ("steps", lambda: {"polar": Polar("quintic", 0)}),
        ("steps", lambda: {"polar": Polar("composite", 3)}),
        ("betas", lambda: {"adamw": AdamW(betas=(0.9, 1.0))}),
        ("betas", lambda: {"adamw": AdamW(betas=(0.9,))}),
        ("eps", lambda: {"adamw": AdamW(eps=0.0)}),
        ("fused", lambda: {"adamw": AdamW(fused="yes")}),
    ],
)
def test_options_out_of_range_are_refused(option: str, make: Any) -> None:
    groups = [{"params": [nn.Parameter(torch.zeros(2, 2))]}, {"params": [nn.Parameter(torch.ones(2))], "rule": "adamw"}]
    with pytest.raises(ValueError, match=rf"(^|; ){option} must be"):
        FISMO(groups, **make())


def test_all_options_that_are_out_of_range_are_named_at_once() -> None:
    with pytest.raises(OptionError) as caught:
        FisherMetric(power=2.0, damping=-1.0, statistics="none")
    assert [name for name, _ in caught.value.problems] == ["power", "damping", "statistics"]


def test_arguments_and_their_defaults_are_the_fields_of_the_options() -> None:
    arguments = {
        name: parameter.default
        for name, parameter in inspect.signature(FISMO.__init__).parameters.items()
        if name not in ("self", "params")
    }
    of_the_run = {"rules": None, "maximize": False, "process_group": None, "rows_per_step": None}
    assert arguments == {**vars(FismoOptions()), **of_the_run}


def test_paper_form_expands() -> None:
    W = nn.Parameter(torch.zeros(2, 2))
    group = FISMO.paper([W], 0.1).param_groups[0]
    assert {key: group[key] for key in vars(PAPER) if key not in ("lr", "adamw")} == {
        key: value for key, value in vars(PAPER).items() if key not in ("lr", "adamw")
    }
    assert group["lr"] == 0.1
    with pytest.raises(TypeError, match="nesterov"):
        FISMO.paper([W], nesterov=True)
    assert FISMO.paper([W], damping=0.2).param_groups[0]["metric"] == replace(PAPER.metric, damping=0.2)


def test_state_bytes_count_every_tensor() -> None:
    optimizer = FISMO([nn.Parameter(torch.zeros(4, 6))], compute_dtype="float32")
    # Momentum 24, dense P and two roots 3 * 16, dense Q and two roots 3 * 36, in float32; two int64 counters.
    assert optimizer.state_bytes() == 4 * (24 + 48 + 108) + 2 * 8
    coarse = FISMO([nn.Parameter(torch.zeros(4, 7))], economy="some", compute_dtype="bfloat16")
    # The longer side is diagonal; roots are kept in the type of the products they are used in.
    assert coarse.state_bytes() == 4 * (28 + 16 + 7) + 2 * (2 * 16 + 2 * 7) + 2 * 8


def test_max_factor_dim_bounds_memory() -> None:
    wide = FISMO([nn.Parameter(torch.zeros(4, 600))], metric=FisherMetric(max_dim=128))
    assert wide.state_bytes() < 4 * (4 * 600 + 3 * 16 + 3 * 600) + 100


def test_diagnostics_of_the_paper_form_show_a_radius_of_one() -> None:
    W = nn.Parameter(torch.zeros(5, 7))
    optimizer = FISMO.paper(
        [("layer.weight", W)], momentum=0.5, polar=Polar("exact"), damping=1e-2, compute_dtype="float32"
    )
    for _ in range(4):
        W.grad = torch.randn(5, 7)
        optimizer.step()
    (row,) = diagnose(optimizer)
    assert row.name == "layer.weight[0]"
    assert row.realised_radius == pytest.approx(1.0, rel=1e-4)
    assert row.row_condition > 1
    # D = P^-1/2 Polar Q^-1/2: its singular values spread at most like the product of the roots'.
    assert 1 < row.update_condition <= (row.row_condition * row.column_condition) ** 0.5 * 1.01


@pytest.mark.slow
def test_compiled_model_trains_like_the_plain_one() -> None:
    plain, compiled = _net(), _net()
    compiled.compile()
    first = train_steps(plain, _fismo(plain), 4)
    second = train_steps(compiled, _fismo(compiled), 4)
    assert first == pytest.approx(second, abs=1e-4)


def test_the_scale_of_the_radius_lengthens_steps_but_not_the_decay():
    torch.manual_seed(0)
    gradient = torch.randn(4, 6)
    ends = []
    for lr, scale in ((0.06, 1.0), (0.02, 3.0)):
        weight = nn.Parameter(torch.full((4, 6), 2.0))
        optimizer = FISMO([weight], lr=lr, weight_decay=0.5, compute_dtype="float32")
        optimizer.param_groups[0]["radius_scale"] = scale
        weight.grad = gradient.clone()
        optimizer.step()
        ends.append(weight.detach())
    torch.testing.assert_close(ends[1] - ends[0], torch.full((4, 6), 2.0 * 0.5 * (0.06 - 0.02)))
