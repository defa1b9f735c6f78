"""How a run ends: after its last step, or when its validation loss gets no better; and which weights are its model."""

import copy

import pytest
import torch

from fismo_cli.errors import UsageError
from fismo_cli.preset.schema import CheckpointConfig, EvaluateConfig
from fismo_cli.training.evaluation import evaluate_part
from fismo_cli.training.evaluator import Evaluator
from fismo_cli.training.events import CheckpointSaved, Evaluated, Finished, Trained
from tests.cli.training.fakes import PointsPart, PointsTask, make_trainer, points_task, store_in, weights

EVERY = EvaluateConfig(every=4)


def validation_losses(events):
    return [(e.step, e.metrics["loss"]) for e in events if isinstance(e, Evaluated) and e.split == "validation"]


def worsening(**train):
    """A learning rate that is too high for long: the loss falls, rises, and stays there."""
    return make_trainer(lr=0.3, steps=80, evaluate=EVERY, schedule={"name": "constant"}, **train)


def test_patience_ends_a_run_after_so_many_evaluations_without_a_better_one(tmp_path):
    whole = validation_losses(worsening().fit())
    trainer = worsening(patience=3)
    events = list(trainer.fit(store_in(tmp_path)))
    summary, losses = events[-1].summary, validation_losses(events)
    values = [loss for _, loss in whole]
    expected = next(i for i in range(len(values)) if i - min(range(i + 1), key=values.__getitem__) == 3)
    assert losses == whole[: expected + 1]
    assert expected + 1 < len(whole)
    assert (summary["status"], summary["steps"], summary["total_steps"]) == ("completed", losses[-1][0], 80)
    assert "no better validation loss in 3 evaluations" in summary["reason"]
    assert summary["best_validation_loss"] == min(values[: expected + 1])
    assert summary["model_step"] == summary["steps"]
    assert any(isinstance(event, Trained) for event in events)


def test_the_model_with_the_best_validation_loss_is_the_final_one(tmp_path):
    trainer = worsening(final_model="best", ema_decay=None)
    models, losses = {}, []
    for event in trainer.fit(store_in(tmp_path, keep=1)):
        if isinstance(event, Evaluated) and event.split == "validation":
            models[event.step] = copy.deepcopy(trainer.model.state_dict())
            losses.append((event.metrics["loss"], event.step))
    loss, step = min(losses)
    summary = event.summary
    assert (summary["best_step"], summary["model_step"], summary["steps"]) == (step, step, 80)
    assert summary["metrics"]["validation"] == {"loss": loss}
    for name, value in weights(trainer).items():
        assert torch.equal(value, models[step][name]), name
    task = points_task()
    measured = evaluate_part(
        task, trainer.model, task.test, batch_size=8, device=torch.device("cpu"), precision="float32"
    )
    assert summary["metrics"]["test"] == measured.metrics


def test_a_run_with_the_best_model_that_is_interrupted_in_its_test_goes_on_from_its_last_weights(tmp_path, monkeypatch):
    store = store_in(tmp_path, keep=1)
    whole = list(worsening(final_model="best").fit(store_in(tmp_path / "whole")))
    trainer = worsening(final_model="best")
    with monkeypatch.context() as patch:
        patch.setattr(Evaluator, "test", lambda evaluator, state: None)
        interrupted = list(trainer.fit(store))
    assert interrupted[-1].summary["status"] == "interrupted"
    assert store.newest() == 80
    again = worsening(final_model="best")
    events = list(again.fit(store, store.load()))
    for key in ("steps", "model_step", "metrics", "best_step"):
        assert events[-1].summary[key] == whole[-1].summary[key], key
    assert not [event for event in events if isinstance(event, CheckpointSaved)]


def test_patience_survives_a_resumption(tmp_path):
    whole = list(worsening(patience=3).fit(store_in(tmp_path / "whole")))[-1].summary
    store = store_in(tmp_path)
    list(worsening(patience=3, checkpoint=CheckpointConfig(every=2)).fit(store))
    for step in store.complete_steps()[::3]:
        events = list(worsening(patience=3).fit(store_in(tmp_path / f"from-{step}"), store.load(step)))
        assert isinstance(events[-1], Finished)
        for key in ("steps", "reason", "best_step", "metrics"):
            assert events[-1].summary[key] == whole[key], (step, key)


@pytest.mark.parametrize("asked", [{"patience": 3}, {"final_model": "best"}])
def test_without_a_validation_part_there_is_no_best_model(asked):
    with pytest.raises(UsageError, match=r"train\.(patience|final_model): the data has no validation part"):
        make_trainer(PointsTask(train=PointsPart(50), validation=None, test=None), evaluate=EVERY, **asked)
