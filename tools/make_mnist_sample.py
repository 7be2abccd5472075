"""Makes mnist/sample.npz of dise_experiments, the part of MNIST that is shipped with the package.

    python tools/make_mnist_sample.py --data-dir DIR

The same data give the same arrays: the draw has fixed seeds.
"""

import argparse
import sys
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from dise_experiments.common.errors import DataError
from dise_experiments.mnist.data import SAMPLE_FILE, MnistSplits, load_mnist

TRAIN, HELD_OUT, TEST = 6000, 1000, 1000
SEED = 0


def draw(full: MnistSplits) -> MnistSplits:
    """The sample of each split, a random part of that split of the full data."""
    # "The first 5000 are cleaner and easier than the last 5000" (LeCun's MNIST page): the head would flatter.
    rows = torch.from_numpy(np.random.RandomState(SEED).permutation(len(full.test))[:TEST])
    # `load_mnist` leaves the training images in a random order, so their heads are random draws.
    return MnistSplits(full.train[:TRAIN], full.held_out[:HELD_OUT], full.test[rows])


def write(sample: MnistSplits, out: Path) -> None:
    """Writes `NAME_images` uint8 [N, 28, 28] and `NAME_labels` uint8 [N] for each split's NAME."""
    np.savez_compressed(
        out,
        train_images=sample.train.images.numpy(),
        train_labels=_as_bytes(sample.train.labels),
        held_out_images=sample.held_out.images.numpy(),
        held_out_labels=_as_bytes(sample.held_out.labels),
        test_images=sample.test.images.numpy(),
        test_labels=_as_bytes(sample.test.labels),
    )


def _as_bytes(labels: Tensor) -> NDArray[np.uint8]:
    return labels.numpy().astype(np.uint8)


def main() -> None:
    """Draws, writes and says how large the file is."""
    parser = argparse.ArgumentParser(description="Make the MNIST sample that is shipped with the package.")
    parser.add_argument("--data-dir", type=Path, help="folder that holds mnist/*.gz (default: $DISE_DATA)")
    parser.add_argument("--out", type=Path, default=SAMPLE_FILE, help="file to write (default: %(default)s)")
    options = parser.parse_args()
    try:
        full = load_mnist(options.data_dir)
    except DataError as error:
        sys.exit(str(error))
    write(draw(full), options.out)
    print(f"{options.out}: {options.out.stat().st_size:,} bytes")


if __name__ == "__main__":
    main()
