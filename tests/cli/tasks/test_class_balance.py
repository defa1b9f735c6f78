"""Weights of classes and balanced sampling: against scikit-learn and torch, and the same whoever sees which samples."""

from collections import Counter

import numpy as np
import pytest
import torch
from sklearn.utils.class_weight import compute_class_weight
from torch import nn
from torch.nn import functional

from fismo_cli.errors import UsageError
from fismo_cli.preset.loading import load_preset
from fismo_cli.runs.preparation import prepare
from fismo_cli.tasks.class_balance import class_weights
from fismo_cli.tasks.image_parts import CropFlipPart
from fismo_cli.tasks.images import ImageTask
from fismo_cli.training.checkpoints.store import CheckpointStore
from fismo_cli.training.data.order import MicroBatchKeys, balanced_order, order_hash

LABELS = torch.tensor([0] * 30 + [1] * 3 + [2] * 8)
NAMES = ("a", "b", "c")


def task(**settings):
    return ImageTask(train=None, validation=None, test=None, classes=NAMES, **settings)


def batch(samples=12):
    generator = torch.Generator().manual_seed(0)
    labels = torch.randint(3, (samples,), generator=generator)
    return {"images": torch.randn(samples, 3, generator=generator), "labels": labels}


def test_balanced_weights_are_those_of_scikit_learn_and_named_ones_as_they_are():
    expected = compute_class_weight("balanced", classes=np.arange(3), y=LABELS.numpy())
    assert class_weights("balanced", LABELS.numpy(), NAMES) == pytest.approx(expected.tolist())
    assert class_weights("balanced", LABELS.numpy(), (*NAMES, "none"))[3] == 1.0
    assert class_weights({"b": 2.5}, LABELS.numpy(), NAMES) == (1.0, 2.5, 1.0)
    assert class_weights(None, LABELS.numpy(), NAMES) == ()
    with pytest.raises(UsageError, match=r"B is no class\. Did you mean b\? The classes are a, b, c"):
        class_weights({"B": 2}, LABELS.numpy(), NAMES)


def test_the_weighted_loss_is_torch_s_but_for_the_mean_and_micro_batches_add_up_to_it():
    weighted, model, whole = task(class_weights=(1.0, 4.0, 0.5)), nn.Identity(), batch()
    weight = torch.tensor(weighted.class_weights)
    own = functional.cross_entropy(whole["images"], whole["labels"], weight)
    loss = weighted.training_loss(model, whole)
    assert loss * 12 == pytest.approx((own * weight[whole["labels"]].sum()).item())
    halves = [{key: value[part] for key, value in whole.items()} for part in (slice(6), slice(6, 12))]
    assert loss == pytest.approx(sum(weighted.training_loss(model, half) for half in halves).item() / 2)
    plain = task().training_loss(model, whole).item()
    assert task(class_weights=(1.0,) * 3).training_loss(model, whole) == pytest.approx(plain)
    assert weighted.measure(model, whole)["loss"] == task().measure(model, whole)["loss"]


def test_weights_go_with_mixed_and_smoothed_labels():
    weighted, whole = task(class_weights=(1.0, 4.0, 0.5), label_smoothing=0.1), batch()
    weight = torch.tensor(weighted.class_weights)
    hard, soft = whole["labels"], functional.one_hot(whole["labels"], 3).float()
    mixed = 0.7 * soft + 0.3 * soft.roll(1, 0)
    loss = weighted.training_loss(nn.Identity(), {**whole, "labels": mixed})
    smooth = 0.9 * mixed + 0.1 / 3
    expected = -(smooth * weight * whole["images"].log_softmax(1)).sum(1).mean()
    assert loss == pytest.approx(expected.item())
    assert weighted.training_loss(nn.Identity(), {**whole, "labels": soft}) == pytest.approx(
        weighted.training_loss(nn.Identity(), {**whole, "labels": hard}).item()
    )


def test_an_epoch_has_each_class_equally_often_and_what_is_rare_in_turn():
    order, before = balanced_order(3, 0, LABELS)
    assert len(order) == len(LABELS)
    assert sorted(Counter(LABELS[order].tolist()).values()) == [13, 14, 14]
    for label in range(3):
        times = Counter(order[LABELS[order] == label].tolist())
        assert max(times.values()) - min(times.values()) <= 1
        assert len(times) == min(int((label == LABELS).sum()), sum(times.values()))
    assert max(before.tolist()) == Counter(order.tolist()).most_common(1)[0][1] - 1
    assert len(set(zip(order.tolist(), before.tolist(), strict=True))) == len(order)
    assert all(map(torch.equal, (order, before), balanced_order(3, 0, LABELS)))
    assert not order.equal(balanced_order(3, 1, LABELS)[0])
    assert order_hash(3, 41) != order_hash(3, 41, LABELS) == order_hash(3, 41, LABELS)


def test_ranks_and_resumed_runs_see_the_same_balanced_batches():
    def keys(start=0, rank=0, parts=1):
        return list(
            MicroBatchKeys(
                seed=5, samples=41, batch_size=8, accumulate=2, start=start, total=12, rank=rank, parts=parts,
                balance=LABELS,
            )
        )  # fmt: skip

    whole = keys()
    assert keys(start=7) == whole[14:]
    assert [a + b for a, b in zip(keys(rank=0, parts=2), keys(rank=1, parts=2), strict=True)] == whole
    assert len({key for micro_batch in whole for key in micro_batch}) == 12 * 8


def test_a_sample_that_comes_again_is_augmented_in_another_way():
    pixels = np.random.default_rng(0).integers(0, 256, (41, 8, 8, 1), np.uint8)
    part = CropFlipPart(pixels, LABELS, padding=2, flip=0.5, mean=(0,), std=(1,), seed=1)
    keys = next(iter(MicroBatchKeys(
        seed=5, samples=41, batch_size=41, accumulate=1, start=0, total=1, balance=LABELS
    )))  # fmt: skip
    rare = [key for key in keys if key[1] == 31]
    images = part.__getitems__(rare)["images"]
    assert len(images) >= 4
    assert len(torch.unique(images.flatten(1), dim=0)) > 1


def test_a_run_with_both_resumes_bit_for_bit(tmp_path):
    loaded = load_preset("digits-vit", [
        "train.epochs=null", "train.steps=6", "checkpoint.every=3", "checkpoint.keep=9",
        "data.balanced_sampling=true", "data.class_weights={3: 2.5}",
    ])  # fmt: skip
    store = CheckpointStore(tmp_path, keep=9)
    trainer, again = prepare(loaded).trainer, prepare(loaded).trainer
    assert trainer.task.class_weights[3] == 2.5
    list(trainer.fit(store))
    list(again.fit(resume=store.load(3)))
    weights = trainer.model.state_dict()
    assert all(torch.equal(value, weights[name]) for name, value in again.model.state_dict().items())


def test_what_contradicts_or_is_no_weight_is_refused():
    for overrides, words in (
        (["data.class_weights=balanced", "data.balanced_sampling=true"], "choose one of them"),
        (["data.class_weights=even"], "must be balanced, or class: weight, or null"),
        (["data.class_weights={3: -1}"], "must be a positive number"),
    ):
        with pytest.raises(UsageError, match=words):
            load_preset("digits-vit", overrides)
