"""MNIST: the images, their split, and batches of them.

Source: Y. LeCun, C. Cortes, C. J. C. Burges, "The MNIST database of handwritten digits" (CC BY-SA 3.0);
Y. LeCun, L. Bottou, Y. Bengio, P. Haffner, "Gradient-based learning applied to document recognition", 1998.
"""

import hashlib
from collections.abc import Iterator
from dataclasses import KW_ONLY, dataclass
from pathlib import Path
from typing import Self

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from dise_experiments.common.errors import DataError
from dise_experiments.common.files import Source, unpack_gzip

# MD5 of the unpacked files: publishers and mirrors compress them differently.
MD5 = {
    "train-images-idx3-ubyte.gz": "6bbc9ace898e44ae57da46a324031adb",
    "train-labels-idx1-ubyte.gz": "a25bea736e30d166cdddb491f175f624",
    "t10k-images-idx3-ubyte.gz": "2646ac647ad5339dbf082846283269ea",
    "t10k-labels-idx1-ubyte.gz": "27ae3e4e09519cfbb04c329615203637",
}

MIRRORS = (
    "https://ossci-datasets.s3.amazonaws.com/mnist/",
    "https://storage.googleapis.com/cvdf-datasets/mnist/",
)

SAMPLE_FILE = Path(__file__).with_name("sample.npz")

# IDX: a magic number and one big-endian int32 per dimension precede the bytes.
_IMAGE_HEADER, _LABEL_HEADER = 16, 8


@dataclass(frozen=True, eq=False)
class Images:
    """Images of digits with their labels.

    Shapes: `images` uint8 [N, 28, 28], 0 (paper) to 255 (ink); `labels` int64 [N], 0 to 9.
    Errors: `ValueError` for another dtype or shape.
    """

    images: Tensor
    labels: Tensor

    def __post_init__(self) -> None:
        _expect("images", self.images, torch.uint8, (len(self.images), 28, 28))
        _expect("labels", self.labels, torch.int64, (len(self.images),))

    def __len__(self) -> int:
        return len(self.images)

    def __getitem__(self, index: slice | Tensor) -> "Images":
        """The digits at `index`: a slice, or an int64 or bool tensor."""
        return Images(self.images[index], self.labels[index])


@dataclass(frozen=True, eq=False)
class MnistSplits:
    """Disjoint parts of MNIST: `train` fits the model, `held_out` the selector, `test` judges both."""

    train: Images
    held_out: Images
    test: Images


def load_mnist(
    data_dir: Path | None = None, *, held_out: int = 5000, seed: int = 0, download: bool = True
) -> MnistSplits:
    """All of MNIST: 60,000 - `held_out` images to train on, `held_out` held out, 10,000 to test on.

    Reads `data_dir`/mnist/*.gz, else $DISE_DATA/mnist/*.gz; neither folder is ever written to. Without both, reads
    the user's cache folder and, if `download` is set, downloads missing or damaged files into it.

    `held_out` is the number of training images held out; `seed` draws them. It is not the seed of a run: runs with
    different seeds train and select on the same images. The held-out images are the head of one permutation, so a
    smaller `held_out` is a subset of a larger one, and the head of `train` or `held_out` is a random subset.

    Errors: `DataError` for a file that is missing, damaged or cannot be downloaded; `ValueError` if
    `held_out` is negative or leaves no image to train on.
    """
    source = _source()
    content = {name: source.load(name, data_dir, download=download) for name in MD5}
    train, held = _hold_out(_parse(content, "train"), held_out=held_out, seed=seed)
    return MnistSplits(train, held, _parse(content, "t10k"))


def load_mnist_sample() -> MnistSplits:
    """The real images shipped with the package, for tests and demos: 6,000 train, 1,000 held out, 1,000 test.

    Each part is a random subset of the same part of `load_mnist()`; SAMPLE.md says how they were drawn.
    """
    with np.load(SAMPLE_FILE) as arrays:
        train, held_out, test = (
            _images(arrays[f"{split}_images"], arrays[f"{split}_labels"]) for split in ("train", "held_out", "test")
        )
    return MnistSplits(train, held_out, test)


def to_input(images: Tensor) -> Tensor:
    """Network inputs float32 [B, 1, 28, 28] in [0, 1] of images uint8 [B, 28, 28] in 0 to 255."""
    return images.unsqueeze(1).float() / 255


def random_crop(images: Tensor, *, padding: int = 4, generator: torch.Generator) -> Tensor:
    """Pad every image with zeros and cut out a window of the original size at a random place.

    Shapes: `images` [B, 1, 28, 28] of any floating dtype, in [0, 1]; the result is the same. `padding` is in
    pixels, on each side; the (2·padding + 1)² windows are equally likely. All draws are from `generator`.
    Source: torchdiffeq's examples/odenet_mnist.py, which pads by 4.

    Errors: `ValueError` if `images` does not have four dimensions or `padding` is negative.
    """
    if images.ndim != 4:
        raise ValueError(f"images: expected [B, 1, 28, 28], got {list(images.shape)}")
    if padding < 0:
        raise ValueError(f"padding: expected 0 or more pixels, got {padding}")
    count, _, height, width = images.shape
    padded = torch.nn.functional.pad(images, [padding] * 4)
    windows = padded.unfold(2, height, 1).unfold(3, width, 1)  # a view of all windows, without copies
    corner = torch.randint(2 * padding + 1, (2, count), generator=generator, device=generator.device)
    top, left = corner.to(images.device)
    return windows[torch.arange(count, device=images.device), :, top, left]


@dataclass(frozen=True, eq=False)
class Batches:
    """The batches of one epoch, the same each time: x float32 [b, 1, 28, 28] in [0, 1] and y int64 [b].

    The defaults are those for training. Order and crops depend on `seed` and `epoch` alone, so a resumed run
    gets the same batches as an uninterrupted one: `dataclasses.replace(batches, epoch=epoch)` is another epoch.

    `shuffle` draws an order, `augment` applies `random_crop`, `drop_last` drops a last batch that is not full.

    Errors: `ValueError` if `batch_size` is below 1, `seed` or `epoch` is negative, or `drop_last` would leave no
    batch.
    """

    split: Images
    _: KW_ONLY
    batch_size: int
    seed: int = 0
    epoch: int = 0
    augment: bool = True
    shuffle: bool = True
    drop_last: bool = True

    def __post_init__(self) -> None:
        if self.batch_size < 1:
            raise ValueError(f"batch_size: expected 1 or more, got {self.batch_size}")
        if self.seed < 0 or self.epoch < 0:
            raise ValueError(f"seed, epoch: expected 0 or more, got {self.seed}, {self.epoch}")
        if self.drop_last and self.batch_size > len(self.split):
            raise ValueError(
                f"batch_size: {self.batch_size} is more than the {len(self.split)} images there are, "
                "so drop_last would leave no batch"
            )

    @classmethod
    def evaluation(cls, split: Images, *, batch_size: int) -> Self:
        """Every image once, unchanged and in order; the last batch may be smaller."""
        return cls(split, batch_size=batch_size, augment=False, shuffle=False, drop_last=False)

    def __len__(self) -> int:
        full, rest = divmod(len(self.split), self.batch_size)
        return full + (rest > 0 and not self.drop_last)

    def __iter__(self) -> Iterator[tuple[Tensor, Tensor]]:
        generator = _generator(self.seed, self.epoch)
        count = len(self.split)
        order = torch.randperm(count, generator=generator) if self.shuffle else torch.arange(count)
        for start in range(0, len(self) * self.batch_size, self.batch_size):
            batch = self.split[order[start : start + self.batch_size]]
            x = to_input(batch.images)
            yield (random_crop(x, generator=generator) if self.augment else x), batch.labels


def _generator(seed: int, epoch: int) -> torch.Generator:
    """A generator for each (seed, epoch); with their sum as seed, runs of successive seeds would share epochs."""
    mixed = np.random.SeedSequence([seed, epoch]).generate_state(1, np.uint64)
    return torch.Generator().manual_seed(int(mixed[0]))


def _expect(name: str, tensor: Tensor, dtype: torch.dtype, shape: tuple[int, ...]) -> None:
    if tensor.dtype != dtype or tensor.shape != shape:
        raise ValueError(f"{name}: expected {dtype} {list(shape)}, got {tensor.dtype} {list(tensor.shape)}")


def _hold_out(images: Images, *, held_out: int, seed: int) -> tuple[Images, Images]:
    if not 0 <= held_out < len(images):
        raise ValueError(f"held_out: expected 0 to {len(images) - 1} training images, got {held_out}")
    # The stream of RandomState is frozen (NEP 19), so the split is the same with every version of NumPy.
    order = torch.from_numpy(np.random.RandomState(seed).permutation(len(images))).long()
    return images[order[held_out:]], images[order[:held_out]]


def _parse(content: dict[str, bytes], part: str) -> Images:
    pixels = content[f"{part}-images-idx3-ubyte.gz"]
    labels = content[f"{part}-labels-idx1-ubyte.gz"]
    return _images(
        np.frombuffer(pixels, np.uint8, offset=_IMAGE_HEADER).reshape(-1, 28, 28),
        np.frombuffer(labels, np.uint8, offset=_LABEL_HEADER),
    )


def _images(pixels: NDArray[np.uint8], labels: NDArray[np.uint8]) -> Images:
    return Images(torch.tensor(pixels), torch.tensor(labels, dtype=torch.int64))


def _source() -> Source[bytes]:
    return Source("MNIST", "mnist", "*.gz", MIRRORS, _expected, _unpack)


def _expected(name: str) -> str:
    return f"a gzip file with MD5 {MD5[name]} when unpacked"


def _unpack(name: str, packed: bytes) -> bytes:
    """The checked content of an MNIST file; the `DataError` says only what was found instead."""
    content = unpack_gzip(packed)
    md5 = hashlib.md5(content, usedforsecurity=False).hexdigest()
    if md5 != MD5[name]:
        raise DataError(f"MD5 {md5}")
    return content
