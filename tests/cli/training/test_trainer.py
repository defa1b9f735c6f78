import math
import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from timm.utils.model_ema import ModelEmaV3
from torch import nn

from fismo_cli.errors import FismoError, UsageError
from fismo_cli.preset.schema import CheckpointConfig, EvaluateConfig
from fismo_cli.training.checkpoints.store import CheckpointStore
from fismo_cli.training.events import (
    CheckpointSaved,
    Diverged,
    Evaluated,
    Finished,
    Interrupted,
    RunStarted,
    StepLogged,
)
from fismo_cli.training.seeding import derive_seed, seed_everything
from tests.cli.training.fakes import PointsPart, PointsTask, linear, make_trainer, points_task, store_in, weights

ROOT = Path(__file__).parents[3]


def run(trainer, **arguments):
    events = list(trainer.fit(**arguments))
    assert isinstance(events[-1], Finished)
    return events, events[-1].summary


def of(kind, events):
    return [event for event in events if isinstance(event, kind)]


def assert_equal_weights(left, right):
    assert left.keys() == right.keys()
    for name in left:
        assert torch.equal(left[name], right[name]), name


def test_training_learns_and_reports_in_order():
    events, summary = run(make_trainer(lr=0.1, steps=60), store=None)
    assert isinstance(events[0], RunStarted)
    losses = of(StepLogged, events)
    assert [event.step for event in losses] == list(range(4, 61, 4))
    assert losses[-1].loss < 0.3 * losses[0].loss
    assert [(e.step, e.split) for e in of(Evaluated, events)] == [(60, "validation"), (60, "test")]
    assert summary["status"] == "completed"
    assert summary["samples"] == 60 * 8
    assert summary["metrics"]["train"]["loss"] == losses[-1].loss
    assert summary["metrics"]["test"] == of(Evaluated, events)[-1].metrics
    assert 0 < summary["optimizer_seconds"] < summary["seconds"]


def test_equals_a_loop_written_out():
    """The same steps with nothing but torch: order, schedule, clipping, noise of `prepare`."""
    trainer = make_trainer(steps=9, clip_grad_norm=0.5, schedule={"name": "linear"}, build=linear)
    run(trainer)
    seed_everything(3)
    model, task = linear(), points_task()
    optimizer = torch.optim.AdamW(model.parameters(), lr=0.01)
    for step in range(9):
        order = torch.randperm(50, generator=torch.Generator().manual_seed(derive_seed("order", 0, step // 6)))
        begin = step % 6 * 8
        batch = task.train.__getitems__([(step // 6, int(i)) for i in order[begin : begin + 8]])
        batch = task.prepare(batch, torch.Generator().manual_seed(derive_seed("mixing", 0, step, 0)))
        optimizer.param_groups[0]["lr"] = 0.01 * (1 - step / 9)
        optimizer.zero_grad()
        task.training_loss(model, batch).backward()
        nn.utils.clip_grad_norm_(model.parameters(), 0.5)
        optimizer.step()
    assert_equal_weights(weights(trainer), model.state_dict())


def test_accumulation_equals_the_whole_batch():
    class Plain(PointsTask):
        def prepare(self, batch, generator):
            return {name: value.double() for name, value in batch.items()}

    def trained(accumulate):
        task = Plain(train=PointsPart(50), validation=None, test=None)
        trainer = make_trainer(task, build=lambda: linear().double(), accumulate=accumulate)
        events, _ = run(trainer)
        return weights(trainer), [event.loss for event in of(StepLogged, events)]

    (one, losses), (four, losses4) = trained(1), trained(4)
    for name in one:
        torch.testing.assert_close(one[name], four[name], rtol=1e-9, atol=1e-12)
    assert losses == pytest.approx(losses4, rel=1e-5)


def test_same_seed_same_run_and_another_seed_another():
    first, second, other = make_trainer(), make_trainer(), make_trainer(seed=1)
    for trainer in (first, second, other):
        run(trainer)
    assert_equal_weights(weights(first), weights(second))
    assert not torch.equal(weights(first)["0.weight"], weights(other)["0.weight"])


def test_worker_processes_change_nothing():
    alone, helped = make_trainer(steps=8), make_trainer(steps=8, workers=2)
    run(alone)
    run(helped)
    assert_equal_weights(weights(alone), weights(helped))


@pytest.mark.parametrize("workers", [0, 1])
def test_error_of_a_sample_reaches_the_user_as_it_is(workers):
    class Unreadable(PointsPart):
        def __getitems__(self, keys):
            raise FismoError("cat.png: not an image")

    with pytest.raises(FismoError) as caught:
        run(make_trainer(PointsTask(train=Unreadable(50), validation=None, test=None), workers=workers))
    assert str(caught.value) == "cat.png: not an image"


@pytest.mark.parametrize("stop_at", [1, 7, 13, 20])
@pytest.mark.parametrize(
    "extra",
    [
        {},
        {"ema_decay": 0.9, "clip_grad_norm": 1.0, "accumulate": 2},
        {"fismo": True, "adapt_radius": 2, "mars": True, "noise_every": 3, "clip_grad_norm": 1.0},
    ],
)
def test_resuming_at_any_step_continues_to_the_bit(tmp_path, stop_at, extra):
    settings = {"checkpoint": CheckpointConfig(every=stop_at, keep=100), "evaluate": EvaluateConfig(every=5), **extra}
    whole = make_trainer(**settings)
    events, summary = run(whole, store=store_in(tmp_path))
    checkpoint = store_in(tmp_path).path(stop_at)
    alone = CheckpointStore(tmp_path / "one")
    alone.directory.mkdir()
    checkpoint.rename(alone.path(stop_at))
    torch.rand(17)  # whatever else was drawn must not matter
    resumed = make_trainer(**settings)
    again, resumed_summary = run(resumed, store=alone, resume=alone.load())
    assert_equal_weights(weights(resumed), weights(whole))
    assert_equal_weights(resumed.model.state_dict(), whole.model.state_dict())
    assert resumed_summary["resumed_from_step"] == stop_at
    assert resumed_summary["metrics"] == summary["metrics"]
    tail = [(event.step, event.loss) for event in of(StepLogged, events) if event.step > stop_at]
    assert [(event.step, event.loss) for event in of(StepLogged, again)] == tail


def test_evaluation_changes_nothing_and_happens_when_asked():
    plain, evaluated = make_trainer(), make_trainer(evaluate=EvaluateConfig(every=3, batch_size=4))
    run(plain)
    events, _ = run(evaluated)
    assert_equal_weights(weights(plain), weights(evaluated))
    validation = [event for event in of(Evaluated, events) if event.split == "validation"]
    assert [event.step for event in validation] == [3, 6, 9, 12, 15, 18, 20]
    best = math.inf
    for event in validation:
        assert event.best == (event.metrics["loss"] < best)
        best = min(best, event.metrics["loss"])


def test_metrics_are_over_all_samples_whatever_the_batches():
    trainer = make_trainer(evaluate=EvaluateConfig(batch_size=4))
    _, summary = run(trainer)
    part = trainer.task.validation
    with torch.no_grad():
        model = trainer.final_model.eval()
        expected = (model(part.x).squeeze(1) - part.y).square().mean().item()
    assert summary["metrics"]["validation"]["loss"] == pytest.approx(expected, rel=1e-5)


def test_average_of_weights_is_what_is_evaluated_and_kept():
    """Against timm's average with its warm-up: far from the end of it, near it, and after."""
    for decay, steps in ((0.9999, 20), (0.6, 6)):
        trainer = make_trainer(ema_decay=decay, steps=steps, build=linear)
        theirs = ModelEmaV3(linear(), decay=decay, use_warmup=True)
        update = trainer.average.update

        def updated(model, step, theirs=theirs, update=update):
            theirs.update(model, step=step)
            update(model, step=step)

        trainer.average.update = updated
        run(trainer)
        torch.testing.assert_close(weights(trainer)["weight"], theirs.module.weight.detach())
        assert not torch.equal(weights(trainer)["weight"], trainer.model.weight)


@pytest.mark.parametrize("precision", ["bfloat16", "float16"])
def test_mixed_precision_trains_and_resumes(tmp_path, precision):
    settings = {"precision": precision, "lr": 0.05, "steps": 40, "checkpoint": CheckpointConfig(every=7, keep=9)}
    whole = make_trainer(**settings)
    events, _ = run(whole, store=store_in(tmp_path))
    losses = [event.loss for event in of(StepLogged, events)]
    assert losses[-1] < 0.6 * losses[0]
    assert all(parameter.dtype == torch.float32 for parameter in whole.model.parameters())
    resumed = make_trainer(**settings)
    run(resumed, resume=store_in(tmp_path).load())
    assert_equal_weights(weights(whole), weights(resumed))


class Poisoned(PointsTask):
    """Its loss turns bad at one step."""

    bad_step, value, calls = 10, math.nan, 0

    def training_loss(self, model, batch):
        self.__dict__["calls"] = self.calls + 1
        loss = super().training_loss(model, batch)
        return loss * self.value if self.calls == self.bad_step else loss


def poisoned(value):
    task = Poisoned(train=PointsPart(50), validation=PointsPart(11), test=PointsPart(9))
    task.__dict__["value"] = value
    return task


@pytest.mark.parametrize(
    ("value", "max_loss", "reason"), [(math.nan, None, "nan"), (math.inf, None, "became"), (1e9, 1e6, "max_loss")]
)
def test_divergence_ends_the_run_and_keeps_the_last_good_checkpoint(tmp_path, value, max_loss, reason):
    trainer = make_trainer(
        poisoned(value), log_every=100, max_loss=max_loss, checkpoint=CheckpointConfig(every=3), steps=30
    )
    events, summary = run(trainer, store=store_in(tmp_path))
    (diverged,) = of(Diverged, events)
    assert reason in diverged.reason
    assert diverged.step == 12  # the first checkpoint after the loss of step 10
    assert summary["status"] == "diverged"
    assert summary["metrics"]["test"] is None
    assert store_in(tmp_path).load().step == 9


@pytest.mark.parametrize("finite", [True, False])
def test_a_decomposition_of_broken_gradients_is_a_divergence(tmp_path, finite):
    """Optimizers such as shampoo raise before the loss is looked at; with sound gradients it is their error."""
    task = () if finite else (poisoned(float("nan")),)
    trainer = make_trainer(*task, log_every=100, steps=30)

    def refuse(*arguments):
        raise torch.linalg.LinAlgError("did not converge")

    step = trainer.optimizer.step
    taken = []

    def limited(*arguments):
        taken.append(1)
        return step(*arguments) if len(taken) <= 12 else refuse()

    trainer.optimizer.step = limited
    if finite:
        with pytest.raises(torch.linalg.LinAlgError):
            run(trainer, store=store_in(tmp_path))
        return
    events, summary = run(trainer, store=store_in(tmp_path))
    assert summary["status"] == "diverged"
    assert of(Diverged, events)[0].step == 12


def test_weights_broken_by_the_last_update_are_not_saved(tmp_path):
    trainer = make_trainer(checkpoint=CheckpointConfig(every=5), log_every=100)
    step = trainer.optimizer.step
    count = iter(range(100))

    def breaking(*arguments, **options):
        step(*arguments, **options)
        if next(count) == 9:
            with torch.no_grad():
                trainer.model[0].weight[0, 0] = math.nan

    trainer.optimizer.step = breaking
    events, _ = run(trainer, store=store_in(tmp_path))
    assert of(Diverged, events)[0].step == 10
    assert store_in(tmp_path).load().step == 5


class Signalling(PointsTask):
    """Sends itself a signal while computing the loss of a step."""

    number, at, calls = signal.SIGTERM, 7, 0

    def training_loss(self, model, batch):
        self.__dict__["calls"] = self.calls + 1
        if self.calls == self.at:
            os.kill(os.getpid(), self.number)
        return super().training_loss(model, batch)


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_signal_finishes_the_step_saves_and_can_be_continued(tmp_path, number):
    task = Signalling(train=PointsPart(50, 0.1), validation=PointsPart(11), test=PointsPart(9))
    task.__dict__["number"] = number
    handlers = [signal.getsignal(kind) for kind in (signal.SIGTERM, signal.SIGINT)]
    events, summary = run(make_trainer(task), store=store_in(tmp_path))
    assert [signal.getsignal(kind) for kind in (signal.SIGTERM, signal.SIGINT)] == handlers
    assert of(CheckpointSaved, events)[0].step == 7
    assert of(Interrupted, events) == [Interrupted(7, number)]
    assert (summary["status"], summary["signal"], summary["steps"]) == ("interrupted", number, 7)
    resumed, whole = make_trainer(), make_trainer()
    run(resumed, resume=store_in(tmp_path).load())
    run(whole)
    assert_equal_weights(weights(resumed), weights(whole))


def test_second_interrupt_leaves_at_once():
    class Impatient(Signalling):
        def training_loss(self, model, batch):
            if self.calls == 3:
                os.kill(os.getpid(), signal.SIGINT)
                os.kill(os.getpid(), signal.SIGINT)
            self.__dict__["calls"] = self.calls + 1
            return PointsTask.training_loss(self, model, batch)

    before = signal.getsignal(signal.SIGINT)
    with pytest.raises(KeyboardInterrupt):
        run(make_trainer(Impatient(train=PointsPart(50), validation=None, test=None)))
    assert signal.getsignal(signal.SIGINT) == before


def test_signal_in_the_final_evaluation_can_be_continued(tmp_path):
    class InTest(PointsTask):
        def measure(self, model, batch):
            os.kill(os.getpid(), signal.SIGTERM)
            return super().measure(model, batch)

    task = InTest(train=PointsPart(50, 0.1), validation=None, test=PointsPart(9))
    trainer = make_trainer(task, evaluate=EvaluateConfig(batch_size=1))
    _, summary = run(trainer, store=store_in(tmp_path))
    assert summary["status"] == "interrupted"
    resumed = make_trainer()
    _, again = run(resumed, resume=store_in(tmp_path).load())
    assert again["status"] == "completed"
    assert_equal_weights(weights(resumed), weights(trainer))


def test_full_memory_is_explained():
    class Large(PointsTask):
        def training_loss(self, model, batch):
            raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 20.00 GiB")

    with pytest.raises(FismoError, match=r"train\.accumulate=4"):
        run(make_trainer(Large(train=PointsPart(50), validation=None, test=None), accumulate=2))


def test_other_errors_are_not_disguised():
    class Wrong(PointsTask):
        def training_loss(self, model, batch):
            raise RuntimeError("mat1 and mat2 shapes cannot be multiplied")

    with pytest.raises(RuntimeError, match="mat1"):
        run(make_trainer(Wrong(train=PointsPart(50), validation=None, test=None)))


def test_batch_larger_than_the_data_is_refused():
    with pytest.raises(UsageError, match=r"64.*50"):
        make_trainer(batch_size=64)


def test_a_signal_to_the_whole_process_group_leaves_data_workers_alive():
    """torchrun and Slurm send SIGTERM to all processes; the step that goes on still needs its batches."""
    code = """
import os, signal, sys
from fismo_cli.training.data.order import MicroBatchKeys
from fismo_cli.training.data.loading import fetch
from tests.cli.training.fakes import PointsPart
if __name__ == "__main__":
    signal.signal(signal.SIGTERM, lambda *_: None)
    keys = MicroBatchKeys(seed=0, samples=50, batch_size=5, accumulate=1, start=0, total=40)
    batches = fetch(PointsPart(50), keys, workers=1)
    next(batches)
    os.killpg(0, signal.SIGTERM)
    print(sum(1 for _ in batches))
"""
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, start_new_session=True, timeout=120
    )
    assert done.stdout == "39\n", done.stderr
