"""Conditional flow matching: training a field by regression on the velocities of straight paths.

Source: Lipman et al., Flow Matching for Generative Modeling, 2022 (arXiv:2210.02747), Eq. 9 with σ_min = 0; for
posteriors Wildberger et al., Flow Matching for Scalable Simulation-Based Inference, 2023 (arXiv:2305.17161).
"""

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import lightning as L
import numpy as np
import torch
from lightning.pytorch.callbacks import ModelCheckpoint
from lightning.pytorch.loggers import CSVLogger
from torch import Tensor

from dise_experiments.flows.config import FieldConfig
from dise_experiments.flows.sources import Pair, Source, source
from dise_experiments.flows.stored import claim
from dise_experiments.run.quiet import quiet_lightning
from dise_experiments.run.rundir import MODEL, TRAINING, save_weights, write_json


class Matching(L.LightningModule):
    """A field in training: E |f(t, x_t, c) − (x − ε)|² with x_t = t x + (1 − t) ε, t uniform, ε normal."""

    last_loss: Tensor

    def __init__(self, config: FieldConfig, data: Source) -> None:
        super().__init__()
        self.config, self.data = config, data
        self.field = data.field()
        self.register_buffer("last_loss", torch.tensor(torch.nan))

    def training_step(self, batch: tuple[Pair, Tensor, Tensor], index: int) -> Tensor:
        """The loss of one batch."""
        (x, condition), noise, t = batch
        with torch.autocast(x.device.type, torch.bfloat16, enabled=self.config.half):
            velocity = self.field(t, torch.lerp(noise, x, t), *condition)
        loss = (velocity.float() - (x - noise)).square().mean()
        self.log("loss", loss)
        self.last_loss.copy_(loss.detach())
        return loss

    def train_dataloader(self) -> "Batches":
        """The current epoch's batches; Lightning calls this once per epoch."""
        return Batches(self.data, self.config, self.current_epoch)

    def configure_optimizers(self) -> Any:
        """Adam with a learning rate that falls to 0."""
        optimizer = torch.optim.Adam(self.field.parameters(), lr=self.config.learning_rate, fused=True)
        steps = self.config.epochs * self.config.iterations
        schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, steps)
        return {"optimizer": optimizer, "lr_scheduler": {"scheduler": schedule, "interval": "step"}}


@dataclass(frozen=True)
class Batches:
    """One epoch of batches (data and conditions, noise, times), a function of seed and epoch."""

    data: Source
    config: FieldConfig
    epoch: int

    def __len__(self) -> int:
        return self.config.iterations

    def __iter__(self) -> Iterator[tuple[Pair, Tensor, Tensor]]:
        mixed = np.random.SeedSequence([self.config.seed, self.epoch]).generate_state(1, np.uint64)
        generator = torch.Generator().manual_seed(int(mixed[0]))
        for _ in range(len(self)):
            x, condition = self.data.draw(self.config.batch_size, generator)
            noise = torch.randn(x.shape, generator=generator)
            t = torch.rand((len(x), *[1] * (x.ndim - 1)), generator=generator)
            yield (x, condition), noise, t


def train_field(config: FieldConfig, path: Path, *, data_dir: Path | None = None, device: str = "auto") -> bool:
    """Train a field to its end: continue an interrupted training, do nothing if it is finished.

    Args:
        config: the training.
        path: its directory.
        data_dir: folder of the data, for digits.
        device: Lightning's accelerator: "auto", "cpu" or "gpu".

    Returns:
        whether anything was trained.

    Raises:
        ExperimentError: the directory belongs to another training.
        DataError: the data are missing or damaged.
    """
    claim(path, config)
    if (path / MODEL).exists():
        return False
    data = source(config.task, simulations=config.simulations, sample=config.preset == "sample", data_dir=data_dir)
    checkpoint = path / "checkpoints" / "last.ckpt"
    torch.manual_seed(config.seed)
    module = Matching(config, data)
    with quiet_lightning():
        trainer = L.Trainer(
            accelerator=device,
            devices=1,
            max_epochs=config.epochs,
            callbacks=[ModelCheckpoint(checkpoint.parent, filename="last", enable_version_counter=False)],
            logger=CSVLogger(path, name="logs"),
            reload_dataloaders_every_n_epochs=1,
            log_every_n_steps=min(50, config.iterations),
            use_distributed_sampler=False,
            enable_progress_bar=False,
            enable_model_summary=False,
        )
        trainer.fit(module, ckpt_path=checkpoint if checkpoint.exists() else None, weights_only=True)
    if trainer.interrupted:
        raise KeyboardInterrupt
    save_weights(module.field.half() if config.half else module.field, path / MODEL)
    write_json(path / TRAINING, {"loss": float(module.last_loss), "threads": torch.get_num_threads()})
    return True
