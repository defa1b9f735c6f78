"""What a run measures of its noise and of its steps, and what it does about it."""

import pytest
import torch
from torch import nn

from fismo_cli.preset.schema import BatchGrowthConfig, CheckpointConfig, EvaluateConfig, TrainConfig
from fismo_cli.training.batch_growth import grown
from fismo_cli.training.checkpoints.store import CheckpointStore
from fismo_cli.training.events import BatchGrown, CheckpointSaved, Evaluated, NoiseMeasured, RunStarted, StepLogged
from fismo_cli.training.seeding import derive_seed
from fismo_core import RadiusControl
from tests.cli.training.fakes import PointsPart, PointsTask, linear, make_trainer, points_task, store_in, weights
from tests.cli.training.test_trainer import of, run


def gradients_of_pieces(trainer, pieces: int) -> list[torch.Tensor]:
    """The first batch of a fresh trainer of a linear model, cut into pieces: the gradient of each, written out."""
    order = torch.randperm(50, generator=torch.Generator().manual_seed(derive_seed("order", 0, 0)))[:8]
    task, found = points_task(), []
    config = trainer.train_config
    for micro in range(config.accumulate):
        size = 8 // config.accumulate
        batch = task.train.__getitems__([(0, int(i)) for i in order[micro * size : (micro + 1) * size]])
        batch = task.prepare(batch, torch.Generator().manual_seed(derive_seed("mixing", 0, 0, micro)))
        parts = pieces // config.accumulate
        for part in range(parts):
            share = {name: value[part * size // parts : (part + 1) * size // parts] for name, value in batch.items()}
            trainer.model.zero_grad()
            task.training_loss(trainer.model, share).backward()
            found.append(torch.cat([p.grad.flatten().double() for p in trainer.model.parameters()]))
    trainer.model.zero_grad()
    return found


@pytest.mark.parametrize(("accumulate", "pieces"), [(4, 4), (1, 2)], ids=["micro-batches", "halves"])
def test_signal_and_noise_are_those_of_the_pieces(accumulate, pieces):
    trainer = make_trainer(build=linear, steps=1, accumulate=accumulate, noise_every=1, clip_grad_norm=1e-3)
    each = gradients_of_pieces(trainer, pieces)
    (event,) = of(NoiseMeasured, run(trainer)[0])
    squares = [float(gradient.square().sum()) for gradient in each]
    piece = sum(squares) / pieces if accumulate > 1 else squares[0]  # half of the batch is taken, not both halves
    whole = float((sum(each) / pieces).square().sum())
    assert event.signal == pytest.approx((pieces * whole - piece) / (pieces - 1), rel=1e-5)
    assert event.noise == pytest.approx((piece - whole) * 8 / (pieces - 1), rel=1e-5)
    assert event.batch_size == 8
    assert sum(entry["euclidean"]["noise"] for entry in event.by_parameter.values()) == pytest.approx(event.noise)


@pytest.mark.parametrize("accumulate", [1, 2])
def test_measuring_changes_nothing(accumulate):
    """Of a network with dropout and batch norm."""
    plain, measured = (make_trainer(accumulate=accumulate, noise_every=every) for every in (None, 1))
    assert not of(NoiseMeasured, run(plain)[0])
    assert len(of(NoiseMeasured, run(measured)[0])) == 20
    for name, value in weights(plain).items():
        assert torch.equal(weights(measured)[name], value), name


def test_no_measurement_where_a_batch_has_no_halves():
    events, summary = run(make_trainer(build=linear, batch_size=1, noise_every=1))
    assert not of(NoiseMeasured, events)
    assert summary["noise_scale"] is None


def test_the_fisher_metric_is_measured_of_fismos_matrices():
    (event, *_) = of(NoiseMeasured, run(make_trainer(fismo=True, noise_every=2, steps=6))[0])
    assert event.by_parameter["0.weight"].keys() == {"euclidean", "fisher"}
    assert event.by_parameter["0.bias"].keys() == {"euclidean"}


def test_the_norm_test():
    def measured(signal: float, noise: float) -> NoiseMeasured:
        return NoiseMeasured(1, 8, signal, noise, None, None, {})

    config = BatchGrowthConfig(max_batch_size=50, theta=0.5)
    # At 16 samples the variance of the mean is 1/16 of the noise; the test allows 1/4 of the signal.
    assert grown(2, measured(1.0, 3.9), 8, config) == 2
    assert grown(2, measured(1.0, 4.1), 8, config) == 4
    assert grown(4, measured(1.0, 100.0), 8, config) == 6  # 48 samples: 56 would be too many
    assert grown(6, measured(-1.0, 1.0), 8, config) == 6
    assert grown(2, measured(-1.0, 0.0), 8, config) == 4  # no signal at all


def test_a_batch_grows_within_the_budget_of_samples():
    task = points_task()
    trainer = make_trainer(
        task,
        build=linear,
        steps=61,
        noise_every=2,
        log_every=10,
        batch_growth={"max_batch_size": 32, "theta": 0.01},
        schedule={"name": "linear"},
        evaluate=EvaluateConfig(every=20),
        checkpoint=CheckpointConfig(every=20),
    )
    events, summary = run(trainer)
    assert of(RunStarted, events)[0].total_steps is None
    assert of(RunStarted, events)[0].total_samples == 61 * 8
    assert [event.batch_size for event in of(BatchGrown, events)] == [16, 32]
    # Two steps of 8 and two of 16 samples, then steps of 32, the last with what is left.
    assert summary["steps"] == summary["total_steps"] == 2 + 2 + 14
    assert summary["samples"] == 61 * 8 == 8 * len(task.train.asked)
    assert summary["final_batch_size"] == 32
    assert {len(keys) for keys in task.train.asked} == {8}  # fixed memory
    ordinary = points_task()
    run(make_trainer(ordinary, build=linear, steps=61))
    assert task.train.asked == ordinary.train.asked  # the same samples in the same order
    logged = of(StepLogged, events)
    assert [event.samples // 80 for event in logged] == [1, 2, 3, 4, 5, 6]
    assert logged[-1].lr["lr"] == pytest.approx(0.01 * (1 - 58 / 61))  # of the samples that had been seen
    assert [event.samples // 160 for event in of(Evaluated, events)[:-1]] == [1, 2, 3]


def test_no_batch_grows_during_the_warm_up():
    growth = {"max_batch_size": 32, "theta": 0.01}
    events, _ = run(
        make_trainer(build=linear, accumulate=2, steps=60, noise_every=5, batch_growth=growth, schedule={"warmup": 0.2})
    )
    assert [event.step for event in of(BatchGrown, events)] == [15, 20]


def test_no_batch_grows_after_the_last_step():
    growth = {"max_batch_size": 32, "theta": 0.01}
    events, summary = run(make_trainer(build=linear, accumulate=2, steps=4, noise_every=4, batch_growth=growth))
    assert len(of(NoiseMeasured, events)) == 1
    assert not of(BatchGrown, events)
    assert summary["final_batch_size"] == 8


def test_a_run_whose_batch_grows_resumes_to_the_bit(tmp_path):
    settings = {
        "steps": 60,
        "accumulate": 2,
        "noise_every": 3,
        "batch_growth": {"max_batch_size": 32, "theta": 0.01},
        "checkpoint": CheckpointConfig(every=10, keep=100),
    }
    whole = make_trainer(**settings)
    events, summary = run(whole, store=store_in(tmp_path))
    # Three steps of one batch and three of two, then of four: those that reach or pass 10, 20, ... batches.
    saved = [event.step for event in of(CheckpointSaved, events)]
    assert saved == [7, 9, 12, 14, 17, 19]
    for step in saved[:3]:
        alone = CheckpointStore(tmp_path / str(step))
        alone.directory.mkdir()
        store_in(tmp_path).path(step).rename(alone.path(step))
        resumed = make_trainer(**settings)
        _, again = run(resumed, store=alone, resume=alone.load())
        for name, value in weights(whole).items():
            assert torch.equal(weights(resumed)[name], value), name
        for key in ("steps", "samples", "metrics", "noise_scale", "final_batch_size"):
            assert again[key] == summary[key]


@pytest.mark.parametrize(
    ("change", "key"),
    [
        ({"noise_every": None}, "noise_every"),
        ({"compile": True}, "accumulate"),
        ({"batch_size": 7}, "accumulate"),
        ({"batch_size": 18}, "max_batch_size"),
    ],
)
def test_growth_that_could_not_work_is_refused(change, key):
    values = {"steps": 5, "batch_size": 8, "batch_growth": {"max_batch_size": 32}, **change}
    with pytest.raises(ValueError, match=key):
        TrainConfig.model_validate(values)


# -- the trust radius -------------------------------------------------------------------------------------------------


class Watched(RadiusControl):
    def update(self, step, report):
        self.reports = [*getattr(self, "reports", []), report]
        super().update(step, report)


def test_what_a_step_achieves_is_measured_on_its_own_samples_and_dropout():
    """Against the loss and the products written out, on a network with dropout, batch norm and weight decay."""
    trainer = make_trainer(fismo=True, adapt_radius=1, steps=3, clip_grad_norm=0.1, accumulate=2)
    instrument = trainer._stepper._instruments["radius"]
    instrument.control = Watched(1)
    lengths, calls = [], []
    before_loss = trainer.task.training_loss

    def recorded(model, batch):
        calls.append((torch.get_rng_state(), batch, torch.is_grad_enabled()))
        loss = before_loss(model, batch)
        if torch.is_grad_enabled():
            copies = {name: value.detach().clone() for name, value in model.named_parameters()}
            gradient = torch.autograd.grad(loss, list(model.parameters()), retain_graph=True)
            lengths.append((copies, gradient, loss.item()))
        else:
            lengths.append(({n: v.detach().clone() for n, v in model.named_parameters()}, None, loss.item()))
        return loss

    trainer.task.__dict__["training_loss"] = recorded
    run(trainer)
    matrices = instrument.matrices
    names = [name for name, parameter in trainer.model.named_parameters() if parameter in matrices]
    for step, report in enumerate(instrument.control.reports):
        (first, g1, a), (_, g2, b), (last, _, c), (_, _, d) = lengths[4 * step : 4 * step + 4]
        for one, two in ((0, 2), (1, 3)):
            assert torch.equal(calls[4 * step + one][0], calls[4 * step + two][0])
            assert calls[4 * step + one][1] is calls[4 * step + two][1]
        assert report.actual == pytest.approx((a + b - c - d) / 2, abs=1e-5)
        products = {
            name: float(((x + y) / 2 * (last[name] - first[name])).double().sum())
            for name, x, y in zip(first, g1, g2, strict=True)
        }
        assert report.predicted == pytest.approx(-sum(products.values()), rel=1e-3, abs=1e-7)
        assert report.of_matrices == pytest.approx(-sum(products[name] for name in names), rel=1e-3, abs=1e-7)
        moved = sum(float((last[name] - first[name]).square().sum()) for name in names)
        size = sum(float(first[name].square().sum()) for name in names)
        assert report.change == pytest.approx((moved / size) ** 0.5, rel=1e-4)


def test_measuring_a_step_changes_nothing_but_the_radius():
    plain, measured = make_trainer(fismo=True, steps=12), make_trainer(fismo=True, steps=12, adapt_radius=1)
    measured._radius.update = lambda step, report: None
    run(plain), run(measured)
    for name, value in weights(plain).items():
        assert torch.equal(weights(measured)[name], value), name


def test_the_radius_that_is_logged_is_the_adapted_one():
    trainer = make_trainer(fismo=True, lr=1e-4, steps=40, adapt_radius=4, log_every=1, schedule={"name": "constant"})
    events, summary = run(trainer)
    assert summary["radius_scale"] > 1
    assert of(StepLogged, events)[-1].lr["matrix"] == pytest.approx(
        1e-4 * trainer.optimizer.param_groups[0]["radius_scale"]
    )


@pytest.mark.parametrize("precision", ["bfloat16", "float16"])
def test_everything_together_in_mixed_precision_resumes_to_the_bit(tmp_path, precision):
    settings = {
        "fismo": True,
        "mars": True,
        "adapt_radius": 2,
        "noise_every": 2,
        "accumulate": 2,
        "precision": precision,
        "clip_grad_norm": 1.0,
        "schedule": {"name": "constant"},
        "checkpoint": CheckpointConfig(every=7, keep=100),
    }
    whole = make_trainer(**settings)
    events, summary = run(whole, store=store_in(tmp_path))
    assert whole._radius.next_step > 7
    assert summary["radius_scale"] != 1.0
    measured = of(NoiseMeasured, events)
    assert len(measured) >= (10 if precision == "bfloat16" else 8)  # float16's scale may be too large at first
    alone = CheckpointStore(tmp_path / "one")
    alone.directory.mkdir()
    store_in(tmp_path).path(7).rename(alone.path(7))
    resumed = make_trainer(**settings)
    again, again_summary = run(resumed, store=alone, resume=alone.load())
    for name, value in weights(whole).items():
        assert torch.equal(weights(resumed)[name], value), name
    assert again_summary["radius_scale"] == summary["radius_scale"]
    assert of(NoiseMeasured, again) == [event for event in measured if event.step > 7]


def test_a_step_that_float16_skips_says_nothing_about_the_radius():
    """Its scale is too large at first: the gradients are infinite, and no step is taken."""
    trainer = make_trainer(fismo=True, adapt_radius=2, precision="float16", steps=3)
    scaler = trainer._stepper._scaler
    scaler.load_state_dict({**scaler.state_dict(), "scale": 2.0**60, "growth_interval": 1000})
    before = weights(trainer)["0.weight"]
    run(trainer)
    assert torch.equal(weights(trainer)["0.weight"], before)
    assert (trainer._radius.scale, trainer._radius.gap) == (1.0, 1)


def test_the_noise_is_that_of_the_unscaled_loss():
    """float16 multiplies the loss by 65536; signal and noise are those of float32, up to its rounding."""

    class Small(PointsTask):  # so that 65536 times its gradient is no infinity
        def training_loss(self, model, batch):
            return 1e-3 * super().training_loss(model, batch)

    def measured(precision: str) -> NoiseMeasured:
        task = Small(train=PointsPart(50), validation=None, test=None)
        events, _ = run(make_trainer(task, build=linear, steps=1, noise_every=1, precision=precision))
        return of(NoiseMeasured, events)[0]

    half, single = measured("float16"), measured("float32")
    assert half.signal == pytest.approx(single.signal, rel=0.02)
    assert half.noise == pytest.approx(single.noise, rel=0.02)


def test_nn_modules_without_matrices_do_not_matter():
    class Scalars(nn.Module):
        def __init__(self):
            super().__init__()
            self.weight = nn.Parameter(torch.zeros(4))

        def forward(self, x):
            return (x @ self.weight)[:, None]

    _, summary = run(make_trainer(build=Scalars, fismo=True, adapt_radius=2, noise_every=2))
    assert summary["status"] == "completed"
