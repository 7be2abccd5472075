"""The progress of a training: one bar in a terminal, one line per epoch elsewhere."""

from typing import Any

import lightning as L
from lightning.pytorch.callbacks import Callback
from rich.progress import BarColumn, Progress, TaskProgressColumn, TextColumn, TimeRemainingColumn

from dise_experiments.common.task import Quality
from dise_experiments.run.terminal import errors, say


def progress(quality: Quality) -> Callback:
    """The callback that shows the progress: `TrainingBar` in a terminal, `EpochLines` elsewhere."""
    return TrainingBar(quality) if errors.is_terminal else EpochLines(quality)


class EpochLines(Callback):
    """One line per epoch, for output that is no terminal."""

    def __init__(self, quality: Quality) -> None:
        self.quality = quality

    def on_validation_epoch_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Print the line."""
        say(f"epoch {trainer.current_epoch + 1}/{trainer.max_epochs}: {measures(trainer, self.quality)}")


class TrainingBar(Callback):
    """One bar for the whole training, with the time left, the NFE and the quality on held-out data."""

    def __init__(self, quality: Quality) -> None:
        self.quality = quality
        self.bar = Progress(
            TextColumn("training"),
            BarColumn(bar_width=None),
            TaskProgressColumn(),
            TimeRemainingColumn(compact=True, elapsed_when_finished=True),
            TextColumn("{task.fields[measures]}"),
            console=errors,
            expand=True,
        )

    def on_train_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Show the bar; a resumed training starts where it was interrupted."""
        total = (trainer.max_epochs or 1) * trainer.num_training_batches
        self.task = self.bar.add_task("training", total=total, completed=trainer.global_step, measures="")
        self.bar.start()

    def on_train_batch_end(self, trainer: L.Trainer, *_: Any) -> None:
        """Advance the bar."""
        self.bar.update(self.task, completed=trainer.global_step, measures=measures(trainer, self.quality))

    def on_validation_epoch_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Show the quality on held-out data."""
        self.bar.update(self.task, measures=measures(trainer, self.quality))

    def on_train_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Leave the bar as it is."""
        self.bar.stop()

    def on_exception(self, trainer: L.Trainer, pl_module: L.LightningModule, exception: BaseException) -> None:
        """Leave the bar as it is, so that the error appears below it."""
        self.bar.stop()


def measures(trainer: L.Trainer, quality: Quality) -> str:
    """The NFE of the last training batch and the last quality on held-out data, as far as they are known."""
    shown = {"NFE": ("train/nfe", 1), f"held-out {quality.name}": (f"held_out/{quality.logged}", 3)}
    values = {name: (trainer.callback_metrics.get(key), digits) for name, (key, digits) in shown.items()}
    return ", ".join(f"{name} {float(v):.{digits}f}" for name, (v, digits) in values.items() if v is not None)
