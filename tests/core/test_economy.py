"""Economies of the metric: what `auto` chooses, what it says of it, and that it stays."""

import io

import pytest
import torch
from torch import nn

from fismo_core import FISMO, FisherMetric
from fismo_core.economy import LEVELS, chosen_economy, settled, share_of_step

GPT2_124M = 12 * [*4 * [(768, 768)], (3072, 768), (768, 3072)]


def _matrix(m: int = 4, n: int = 12) -> nn.Parameter:
    return nn.Parameter(torch.randn(m, n))


@pytest.mark.parametrize(("rows", "economy"), [(524_288, "none"), (65_536, "none"), (16_384, "some"), (512, "most")])
def test_the_more_a_step_of_the_model_costs_the_less_is_saved(rows: float, economy: str) -> None:
    assert chosen_economy(GPT2_124M, FisherMetric(), rows) == economy


def test_the_choice_is_that_of_the_least_time() -> None:
    for rows in (100, 1_000, 10_000, 100_000):
        times = {
            name: level.steps / (1 - share_of_step(GPT2_124M, settled(FisherMetric(), name), rows))
            for name, level in LEVELS.items()
        }
        assert times[chosen_economy(GPT2_124M, FisherMetric(), rows)] == min(times.values())
        shares = [share_of_step(GPT2_124M, settled(FisherMetric(), name), rows) for name in LEVELS]
        assert shares == sorted(shares, reverse=True)


def test_what_the_metric_says_itself_wins() -> None:
    metric = settled(FisherMetric(statistics="both", refresh_every=7, max_ratio=2.0), "most")
    assert (metric.statistics, metric.refresh_every, metric.max_ratio) == ("both", 7, 2.0)
    assert settled(FisherMetric(), "none").max_ratio is None
    with pytest.raises(ValueError, match="economy='auto' of a parameter group: set one of none, some, most"):
        settled(FisherMetric(), "auto")


def test_rows_decide_and_the_plan_says_so() -> None:
    few, many = (FISMO([_matrix()], rows_per_step=rows) for rows in (1, 10_000))
    assert [optimizer.param_groups[0]["economy"] for optimizer in (few, many)] == ["most", "none"]
    assert "economy none: dense factors" in str(many.plan())
    assert "With 10,000 rows a step" in str(many.plan())
    assert "(assumed: say rows_per_step)" in str(FISMO([_matrix()]).plan())
    assert "economy" not in str(FISMO([_matrix()], metric=FisherMetric(power=0.0)).plan())
    for wrong in (0, -1.0, float("nan")):
        with pytest.raises(ValueError, match="rows_per_step must be a positive number"):
            FISMO([_matrix()], rows_per_step=wrong)


def test_a_state_brings_its_economy_along() -> None:
    """Also into an optimizer that would have chosen another one, since it decides which factors are dense."""
    W = _matrix()
    optimizer = FISMO([W], economy="some")
    W.grad = torch.randn_like(W)
    optimizer.step()
    file = io.BytesIO()
    torch.save(optimizer.state_dict(), file)
    file.seek(0)
    other = FISMO([W])
    assert other.param_groups[0]["economy"] == "none"
    other.load_state_dict(torch.load(file, weights_only=True))
    assert other.param_groups[0]["economy"] == "some"
    assert other.state[W]["Q.0"].ndim == 1
    other.step()


def test_an_economy_that_is_changed_later_is_refused() -> None:
    W = _matrix()
    optimizer = FISMO([W], economy="some")
    optimizer.param_groups[0]["economy"] = "none"
    W.grad = torch.randn_like(W)
    with pytest.raises(RuntimeError, match="cannot be changed later"):
        optimizer.step()
