"""Checkpoints of a training."""

from pathlib import Path
from typing import Any

import torch
from lightning.fabric.plugins import TorchCheckpointIO

from dise.select.deploy.atomic import atomic_write


class AtomicCheckpoints(TorchCheckpointIO):
    """Checkpoints that appear whole or not at all.

    Lightning writes to the system's temporary folder and moves the file from there, which is a copy between two file
    systems: a process killed meanwhile would leave a damaged checkpoint.
    """

    def save_checkpoint(self, checkpoint: dict[str, Any], path: Any, storage_options: Any = None) -> None:
        """Write the checkpoint.

        Args:
            checkpoint: the training's state.
            path: its file.
            storage_options: not used.
        """
        file = Path(path)
        file.parent.mkdir(parents=True, exist_ok=True)
        with atomic_write(file) as partial:
            torch.save(checkpoint, partial)
