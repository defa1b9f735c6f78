"""FISMO in Lightning: what `configure_optimizers` returns; the trainer's checkpoints hold its state."""

import logging
import tempfile

import lightning
import torch
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

from fismo_core import FISMO

logging.getLogger("lightning.pytorch").setLevel(logging.ERROR)
x = torch.randn(640, 16, generator=torch.Generator().manual_seed(0))
loader = DataLoader(TensorDataset(x, x[:, :4].argmax(dim=1)), batch_size=64, num_workers=0)


class Net(lightning.LightningModule):
    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.layers = nn.Sequential(nn.Linear(16, 32), nn.GELU(), nn.Linear(32, 32), nn.GELU())
        self.head = nn.Linear(32, 4)

    def training_step(self, batch, index: int) -> torch.Tensor:
        inputs, labels = batch
        return nn.functional.cross_entropy(self.head(self.layers(inputs)), labels)

    def configure_optimizers(self):
        optimizer = FISMO(self, lr=0.02, weight_decay=0.1)
        return [optimizer], [torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, 2)]


def trainer(epochs: int) -> lightning.Trainer:
    quiet = {"enable_progress_bar": False, "enable_model_summary": False, "enable_checkpointing": False}
    return lightning.Trainer(max_epochs=epochs, accelerator="cpu", logger=False, **quiet)


with tempfile.TemporaryDirectory() as folder:
    whole = Net()
    trainer(2).fit(whole, loader)
    half = trainer(1)
    half.fit(Net(), loader)
    half.save_checkpoint(f"{folder}/half.ckpt")
    again = Net()
    trainer(2).fit(again, loader, ckpt_path=f"{folder}/half.ckpt")

same = all(map(torch.equal, whole.parameters(), again.parameters()))
print(f"resumed: the same weights: {same}")
