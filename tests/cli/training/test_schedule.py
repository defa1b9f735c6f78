import math

import pytest

from fismo_cli.errors import UsageError
from fismo_cli.preset.schema import ScheduleConfig, TrainConfig
from fismo_cli.training.data.order import MicroBatchKeys, epoch_order, sequential_keys
from fismo_cli.training.schedule import factor, total_steps


def factors(total: int, **schedule: object) -> list[float]:
    config = ScheduleConfig.model_validate(schedule)
    return [factor(step, total, config) for step in range(total)]


@pytest.mark.parametrize("name", ["constant", "linear", "cosine", "warmup-stable-decay"])
@pytest.mark.parametrize("warmup", [0.0, 0.1, 0.5, 0.9])
@pytest.mark.parametrize("total", [1, 2, 7, 100])
def test_every_schedule_stays_in_range_rises_once_and_never_wastes_a_step(name, warmup, total):
    values = factors(total, name=name, warmup=warmup)
    assert all(0.0 < value <= 1.0 for value in values)
    peak = values.index(max(values))
    assert values[: peak + 1] == sorted(values[: peak + 1])
    assert values[peak:] == sorted(values[peak:], reverse=True)


def test_cosine_without_warmup_is_half_at_half_time():
    values = factors(100, name="cosine")
    assert values[0] == 1.0
    assert values[50] == pytest.approx(0.5)
    assert values[25] == pytest.approx((1 + math.sqrt(0.5)) / 2)


def test_warmup_rises_in_equal_steps_to_the_peak():
    assert factors(10, name="linear", warmup=0.4)[:5] == pytest.approx([0.2, 0.4, 0.6, 0.8, 1.0])


def test_stable_decay_falls_only_at_the_end():
    values = factors(10, name="warmup-stable-decay", warmup=0.2, decay=0.3)
    assert values[2:8] == [1.0] * 6
    assert values[8:] == pytest.approx([2 / 3, 1 / 3])


def test_final_share_is_the_limit_of_the_decay():
    for name in ("linear", "cosine", "warmup-stable-decay"):
        config = ScheduleConfig.model_validate({"name": name, "final": 0.25})
        assert factor(1000, 1000, config) == pytest.approx(0.25)


def test_steps_from_epochs_drop_the_rest_of_a_batch_and_allow_fractions():
    def steps(samples: int, **train: object) -> int:
        return total_steps(TrainConfig.model_validate({"batch_size": 10, **train}), samples)

    assert steps(59, epochs=2) == 10
    assert steps(59, epochs=0.5) == 2
    assert steps(59, epochs=0.01) == 1
    assert steps(59, steps=7) == 7


def test_batch_larger_than_the_data_names_both_numbers():
    with pytest.raises(UsageError, match=r"64.*50"):
        total_steps(TrainConfig.model_validate({"batch_size": 64, "steps": 3}), 50)


def keys(**changes: int) -> list[list[tuple[int, int]]]:
    settings = {"seed": 5, "samples": 23, "batch_size": 6, "accumulate": 1, "start": 0, "total": 9}
    return list(MicroBatchKeys(**{**settings, **changes}))


def test_an_epoch_sees_each_sample_at_most_once_and_another_epoch_another_order():
    batches = keys()
    assert len(batches) == 9
    first = [key for batch in batches[:3] for key in batch]
    assert len({index for _, index in first}) == 18
    assert {epoch for epoch, _ in first} == {0}
    assert {epoch for batch in batches[3:6] for epoch, _ in batch} == {1}
    assert [index for _, index in batches[0]] != [index for _, index in batches[3]]


def test_order_from_any_step_is_the_tail_of_the_whole_order():
    whole = keys(accumulate=2)
    for start in range(10):
        assert keys(accumulate=2, start=start) == whole[2 * start :]


def test_accumulation_cuts_the_same_batches():
    parts = keys(accumulate=3)
    assert [parts[i] + parts[i + 1] + parts[i + 2] for i in range(0, 27, 3)] == keys()


def test_order_depends_on_seed_and_epoch_only():
    assert epoch_order(1, 2, 30).equal(epoch_order(1, 2, 30))
    assert not epoch_order(1, 2, 30).equal(epoch_order(2, 1, 30))


def test_sequential_keys_cover_everything_once():
    assert [index for batch in sequential_keys(range(7), 3) for _, index in batch] == list(range(7))
