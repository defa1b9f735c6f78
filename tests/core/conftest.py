"""Models and gradients that the optimizer tests share."""

from collections.abc import Sequence

import pytest
import torch
from torch import Tensor, nn


@pytest.fixture(autouse=True)
def _seed() -> None:
    torch.manual_seed(0)


def replayed_gradients(shape: Sequence[int], steps: int, dtype: torch.dtype = torch.float64) -> list[Tensor]:
    """Gradients with a decaying spectrum that drifts from step to step, as real ones do."""
    generator = torch.Generator().manual_seed(1)
    m, n = shape
    decay = torch.logspace(0, -2, min(m, n), dtype=torch.float64)
    base = torch.randn(m, min(m, n), generator=generator, dtype=torch.float64) * decay
    result = []
    for _ in range(steps):
        right = torch.randn(min(m, n), n, generator=generator, dtype=torch.float64)
        noise = torch.randn(m, n, generator=generator, dtype=torch.float64)
        result.append((base @ right + 0.05 * noise).to(dtype))
    return result


class SmallNet(nn.Module):
    """A convolution, a linear layer, a normalisation and a head."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(2, 6, 3, padding=1)
        self.norm = nn.LayerNorm([6, 4, 4])
        self.hidden = nn.Linear(96, 12)
        self.head = nn.Linear(12, 3)

    def get_classifier(self) -> nn.Module:
        return self.head

    def forward(self, x: Tensor) -> Tensor:
        return self.head(torch.relu(self.hidden(torch.relu(self.norm(self.conv(x))).flatten(1))))


def train_steps(model: nn.Module, optimizer: torch.optim.Optimizer, steps: int, seed: int = 0) -> list[float]:
    generator = torch.Generator().manual_seed(seed)
    dtype = next(model.parameters()).dtype
    losses = []
    for _ in range(steps):
        x = torch.randn(16, 2, 4, 4, generator=generator).to(dtype)
        y = torch.randint(0, 3, (16,), generator=generator)
        optimizer.zero_grad()
        loss = nn.functional.cross_entropy(model(x).float(), y)
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    return losses
