"""Messages of other libraries that do not concern users of the experiments, silenced at their sources."""

import logging
import warnings
from collections.abc import Iterator
from contextlib import contextmanager

_IRRELEVANT = (
    # batches are in memory: worker processes would slow the loading down
    ".*does not have many workers.*",
    # a resumed training writes its checkpoints beside the earlier ones
    "Checkpoint directory .* exists and is not empty.*",
    # some epochs of small experiments are shorter than the interval; epochs are logged all the same
    ".*smaller than the logging interval.*",
    # Lightning's own use of torch
    ".*isinstance.treespec, LeafSpec.* is deprecated.*",
)


@contextmanager
def quiet_lightning() -> Iterator[None]:
    """Silence Lightning's tips, its list of devices, and warnings that do not apply here."""
    for name in ("lightning.pytorch", "lightning.fabric"):
        logging.getLogger(name).setLevel(logging.WARNING)
    with warnings.catch_warnings():
        for message in _IRRELEVANT:
            warnings.filterwarnings("ignore", message=message)
        yield
