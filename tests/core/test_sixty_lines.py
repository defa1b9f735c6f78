"""The optimizer that docs/fismo-in-60-lines.md explains, taken from that page, against the library."""

import re
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from fismo_core import FISMO, FisherMetric
from tests.core.conftest import replayed_gradients

PAGE = Path(__file__).parents[2] / "docs" / "fismo-in-60-lines.md"


@pytest.fixture(scope="module")
def reference() -> Any:
    (code,) = re.findall(r"```python\n(.*?)```", PAGE.read_text(encoding="utf-8"), re.DOTALL)
    assert len(code.splitlines()) <= 60
    namespace: dict[str, Any] = {}
    exec(code, namespace)
    return namespace["Fismo"]


def _path(optimizer: Any, W: nn.Parameter, gradients: list[Tensor]) -> Tensor:
    for G in gradients:
        W.grad = G.clone()
        optimizer.step()
    return W.detach()


@pytest.mark.parametrize("shape", [(6, 6), (6, 9), (4, 10), (14, 6)])
@pytest.mark.parametrize("options", [{}, {"weight_decay": 0.3, "momentum": 0.8}])
def test_the_library_takes_the_steps_of_the_page(reference: Any, shape: tuple[int, int], options: Any) -> None:
    gradients = replayed_gradients(shape, 23)
    start = torch.randn(shape, dtype=torch.float64)
    W, exact, default = (nn.Parameter(start.clone()) for _ in range(3))
    expected = _path(reference([W], lr=0.1, **options), W, gradients)
    metric = FisherMetric(roots="eigh")
    got = _path(FISMO([exact], lr=0.1, metric=metric, **options), exact, gradients)
    torch.testing.assert_close(got, expected, rtol=1e-8, atol=1e-9)
    near = _path(FISMO([default], lr=0.1, **options), default, gradients)
    assert (near - expected).norm() < 0.05 * (expected - start).norm()
