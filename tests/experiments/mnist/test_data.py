import dataclasses
import gzip
import hashlib
import os
import runpy
import sys
import threading
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import numpy as np
import pooch
import pytest
import torch

from dise_experiments.common.errors import DataError
from dise_experiments.mnist import data
from dise_experiments.mnist.data import Batches, Images, load_mnist, load_mnist_sample, random_crop, to_input

ROOT = Path(__file__).parents[3]
TRAIN_IMAGES = "train-images-idx3-ubyte.gz"
TEST_LABELS = "t10k-labels-idx1-ubyte.gz"

# How often each digit occurs in MNIST's two files, as is commonly published.
TRAIN_COUNTS = [5923, 6742, 5958, 6131, 5842, 5421, 5918, 6265, 5851, 5949]
TEST_COUNTS = [980, 1135, 1032, 1010, 982, 892, 958, 1028, 974, 1009]


# ---- fixtures: all of MNIST where it is there, and a stand-in of 60 + 20 images that has its own checksums


@pytest.fixture(scope="module")
def full():
    folder = Path(os.environ.get("DISE_DATA") or ROOT.parent / "shared" / "data")
    if not (folder / "mnist" / TRAIN_IMAGES).exists():
        pytest.skip(f"needs all of MNIST in DISE_DATA; {folder}/mnist is not there")
    return load_mnist(folder)


@pytest.fixture(scope="module")
def sample():
    return load_mnist_sample()


@pytest.fixture(autouse=True)
def no_environment(monkeypatch):
    monkeypatch.delenv("DISE_DATA", raising=False)


def idx(array):
    """IDX: two zero bytes, the type (8: uint8), the number of dimensions, their sizes, the bytes."""
    sizes = np.array(array.shape, ">i4").tobytes()
    return bytes([0, 0, 8, array.ndim]) + sizes + array.tobytes()


def small_arrays():
    rng = np.random.default_rng(0)
    arrays = {}
    for part, count in (("train", 60), ("t10k", 20)):
        arrays[f"{part}-images-idx3-ubyte.gz"] = rng.integers(0, 256, (count, 28, 28), np.uint8)
        arrays[f"{part}-labels-idx1-ubyte.gz"] = np.arange(count, dtype=np.uint8) % 10
    return arrays


@pytest.fixture
def small(tmp_path, monkeypatch):
    """A data folder with a small MNIST, whose checksums stand for the real ones."""
    folder = tmp_path / "given"
    (folder / "mnist").mkdir(parents=True)
    contents = {name: idx(array) for name, array in small_arrays().items()}
    for name, content in contents.items():
        (folder / "mnist" / name).write_bytes(gzip.compress(content))
    monkeypatch.setattr(data, "MD5", {name: hashlib.md5(c).hexdigest() for name, c in contents.items()})
    return folder


def keys(images):
    """One hashable value an image and its label."""
    rows = zip(images.images.numpy(), images.labels.tolist(), strict=True)
    return [(row.tobytes(), label) for row, label in rows]


def same(one, other):
    return torch.equal(one.images, other.images) and torch.equal(one.labels, other.labels)


# ---- all of MNIST


def test_full_mnist_has_the_published_sizes_labels_and_mean(full):
    assert [len(full.train), len(full.held_out), len(full.test)] == [55_000, 5_000, 10_000]
    counts = full.train.labels.bincount() + full.held_out.labels.bincount()
    assert counts.tolist() == TRAIN_COUNTS
    assert full.test.labels.bincount().tolist() == TEST_COUNTS
    # The mean and standard deviation everybody normalises MNIST's training images with.
    pixels = torch.cat([full.train.images, full.held_out.images]).float() / 255
    assert pixels.mean().item() == pytest.approx(0.1307, abs=5e-5)
    assert pixels.std().item() == pytest.approx(0.3081, abs=5e-5)


def test_held_out_images_of_mnist_are_the_ones_they_have_always_been(full):
    # A recorded value: were the split to move, a selector would be judged on images its model was trained on.
    md5 = hashlib.md5(full.held_out.images.numpy().tobytes()).hexdigest()
    assert md5 == "63e6dd8b10ea3e3035f1d977c3e2c54f"


# ---- the sample


def test_every_sample_image_is_in_the_same_split_of_mnist(sample, full):
    for name in ("train", "held_out", "test"):
        assert set(keys(getattr(sample, name))) <= set(keys(getattr(full, name)))


def test_sample_sizes_and_types(sample):
    assert [len(sample.train), len(sample.held_out), len(sample.test)] == [6000, 1000, 1000]
    assert data.SAMPLE_FILE.stat().st_size < 2_000_000
    assert sample.train.images.shape == (6000, 28, 28)


def test_sample_parts_share_no_image(sample):
    everything = [*keys(sample.train), *keys(sample.held_out), *keys(sample.test)]
    assert len(set(everything)) == 8000


def test_sample_has_every_digit_about_as_often_as_mnist(sample):
    for part, published in ((sample.train, TRAIN_COUNTS), (sample.test, TEST_COUNTS)):
        expected = torch.tensor(published) * len(part) / sum(published)
        # A binomial count has a standard deviation of at most √expected; 4 of them, 20 counts.
        assert (part.labels.bincount(minlength=10) - expected).abs().le(4 * expected.sqrt()).all()


def test_sample_is_what_the_tool_makes(sample, full):
    tool = runpy.run_path(str(ROOT / "tools" / "make_mnist_sample.py"))
    drawn = tool["draw"](full)
    assert same(drawn.train, sample.train)
    assert same(drawn.held_out, sample.held_out)
    assert same(drawn.test, sample.test)


def test_tool_writes_what_the_loader_reads(sample, tmp_path, monkeypatch):
    tool = runpy.run_path(str(ROOT / "tools" / "make_mnist_sample.py"))
    part = data.MnistSplits(sample.train[:5], sample.held_out[:3], sample.test[:2])
    tool["write"](part, tmp_path / "part.npz")
    monkeypatch.setattr(data, "SAMPLE_FILE", tmp_path / "part.npz")
    read = load_mnist_sample()
    assert same(read.train, part.train)
    assert same(read.held_out, part.held_out)
    assert same(read.test, part.test)


def test_tool_ends_with_one_line_when_there_are_no_data(tmp_path, monkeypatch):
    monkeypatch.setattr(sys, "argv", ["make_mnist_sample.py", "--data-dir", str(tmp_path)])
    tool = runpy.run_path(str(ROOT / "tools" / "make_mnist_sample.py"))
    with pytest.raises(SystemExit, match="no such file"):
        tool["main"]()


# ---- splits


def test_small_files_are_read_exactly(small):
    splits = load_mnist(small, held_out=0)
    arrays = small_arrays()
    assert torch.equal(splits.test.images, torch.from_numpy(arrays["t10k-images-idx3-ubyte.gz"]))
    assert splits.test.labels.tolist() == [0, 1, 2, 3, 4, 5, 6, 7, 8, 9] * 2
    pairs = zip(arrays[TRAIN_IMAGES], arrays["train-labels-idx1-ubyte.gz"].tolist(), strict=True)
    assert sorted(keys(splits.train)) == sorted((row.tobytes(), label) for row, label in pairs)


def test_held_out_and_train_partition_the_training_images(small):
    splits = load_mnist(small, held_out=15)
    train, held_out = set(keys(splits.train)), set(keys(splits.held_out))
    assert (len(train), len(held_out)) == (45, 15)
    assert len(train | held_out) == 60


def test_split_depends_on_its_seed_alone(small):
    first = load_mnist(small, held_out=15)
    torch.manual_seed(123)
    np.random.seed(123)
    again = load_mnist(small, held_out=15)
    other = load_mnist(small, held_out=15, seed=1)
    assert same(first.held_out, again.held_out)
    assert same(first.train, again.train)
    assert set(keys(first.held_out)) != set(keys(other.held_out))


def test_split_leaves_the_random_state_of_the_process_alone(small):
    torch_state, numpy_state = torch.get_rng_state(), np.random.get_state()[1].copy()
    load_mnist(small, held_out=15)
    assert torch.equal(torch.get_rng_state(), torch_state)
    assert np.array_equal(np.random.get_state()[1], numpy_state)


def test_a_smaller_held_out_part_is_within_a_larger_one(small):
    larger = load_mnist(small, held_out=15).held_out
    assert same(load_mnist(small, held_out=6).held_out, larger[:6])


@pytest.mark.parametrize("held_out", [-1, 60, 61])
def test_held_out_must_leave_images_to_train_on(small, held_out):
    with pytest.raises(ValueError, match=rf"held_out: expected 0 to 59 .* got {held_out}"):
        load_mnist(small, held_out=held_out)


# ---- files of a given folder


def test_environment_variable_names_the_folder(small, monkeypatch):
    monkeypatch.setenv("DISE_DATA", str(small))
    assert len(load_mnist(held_out=15).test) == 20


def test_argument_wins_over_environment_variable(small, monkeypatch):
    monkeypatch.setenv("DISE_DATA", "/nowhere")
    assert len(load_mnist(small, held_out=15).test) == 20


def test_home_folder_is_expanded(small, monkeypatch):
    monkeypatch.setenv("HOME", str(small.parent))
    monkeypatch.setenv("USERPROFILE", str(small.parent))
    assert len(load_mnist(Path("~/given"), held_out=15).test) == 20


def check_message(error, path, found):
    """One message: the path, what was expected, what was found, what to do."""
    message = str(error)
    assert str(path) in message
    assert f"expected a gzip file with MD5 {data.MD5[path.name]} when unpacked" in message
    assert f"found {found}" in message
    assert "--data-dir" in message
    assert "DISE_DATA" in message
    assert "download" in message
    assert "\n" not in message


def test_missing_file(small):
    path = small / "mnist" / TEST_LABELS
    path.unlink()
    with pytest.raises(DataError) as caught:
        load_mnist(small)
    check_message(caught.value, path, "no such file")


def test_folder_that_does_not_exist(tmp_path):
    with pytest.raises(DataError) as caught:
        load_mnist(tmp_path / "typo")
    check_message(caught.value, tmp_path / "typo" / "mnist" / TRAIN_IMAGES, "no such file")


def test_other_content(small):
    path = small / "mnist" / TRAIN_IMAGES
    path.write_bytes(gzip.compress(b"other"))
    with pytest.raises(DataError) as caught:
        load_mnist(small)
    check_message(caught.value, path, "MD5 795f3202b17cb6bc3d4b771d8c6c9eaf")  # of b"other", by md5sum


def test_truncated_file(small):
    path = small / "mnist" / TRAIN_IMAGES
    path.write_bytes(path.read_bytes()[:-100])
    with pytest.raises(DataError) as caught:
        load_mnist(small)
    check_message(caught.value, path, "a file that cannot be unpacked (")


@pytest.mark.parametrize("content", [b"", b"<html>Not found</html>"], ids=["empty", "not gzip"])
def test_file_that_is_no_gzip_file(small, content):
    path = small / "mnist" / TRAIN_IMAGES
    path.write_bytes(content)
    with pytest.raises(DataError) as caught:
        load_mnist(small)
    found = "MD5 d41d8cd98f00b204e9800998ecf8427e" if content == b"" else "a file that cannot be unpacked ("
    check_message(caught.value, path, found)


# 0xFF far inside is a wrong pixel, which gzip's CRC shows; behind the header of 10 bytes it announces a block
# of a type that does not exist.
@pytest.mark.parametrize("place", [20_000, 10], ids=["checksum", "structure"])
def test_damage_within_the_compressed_data(small, place):
    path = small / "mnist" / TRAIN_IMAGES
    content = bytearray(path.read_bytes())
    content[place] = 0xFF
    path.write_bytes(content)
    with pytest.raises(DataError, match="found a file that cannot be unpacked"):
        load_mnist(small)


def test_repacked_file_is_accepted(small):
    path = small / "mnist" / TRAIN_IMAGES
    before = load_mnist(small, held_out=15)
    path.write_bytes(gzip.compress(gzip.decompress(path.read_bytes()), compresslevel=1))
    assert same(load_mnist(small, held_out=15).train, before.train)


def test_given_folder_is_never_written_to(small):
    (small / "mnist" / TEST_LABELS).unlink()
    before = {path: path.stat().st_mtime_ns for path in small.rglob("*")}
    with pytest.raises(DataError):
        load_mnist(small, download=True)
    assert {path: path.stat().st_mtime_ns for path in small.rglob("*")} == before


# ---- download, from a server on the loopback interface


class Handler(SimpleHTTPRequestHandler):
    def do_GET(self):
        self.server.requested.append(self.path)
        super().do_GET()

    def log_message(self, *_):
        pass


@pytest.fixture
def server(small, tmp_path, monkeypatch):
    """A mirror of the small MNIST; the cache folder is tmp_path/cache."""
    monkeypatch.setattr(pooch, "os_cache", lambda project: tmp_path / "cache" / project)
    monkeypatch.setenv("no_proxy", "127.0.0.1")
    with ThreadingHTTPServer(("127.0.0.1", 0), partial(Handler, directory=small / "mnist")) as server:
        server.requested = []
        server.url = f"http://127.0.0.1:{server.server_port}/"
        monkeypatch.setattr(data, "MIRRORS", (server.url,))
        threading.Thread(target=server.serve_forever, args=(0.01,), daemon=True).start()
        yield server
        server.shutdown()


@pytest.fixture
def cache(tmp_path):
    return tmp_path / "cache" / "dise" / "mnist"


def test_download_fills_the_cache_once(server, small, cache):
    downloaded = load_mnist(held_out=15)
    assert same(downloaded.train, load_mnist(small, held_out=15).train)
    assert sorted(path.name for path in cache.iterdir()) == sorted(data.MD5)
    assert len(server.requested) == 4
    load_mnist(held_out=15)
    assert len(server.requested) == 4


def test_download_tries_the_next_mirror(server, monkeypatch):
    monkeypatch.setattr(data, "MIRRORS", (f"{server.url}gone/", server.url))
    assert len(load_mnist(held_out=15).test) == 20
    assert len(server.requested) == 8


def test_download_repairs_a_damaged_cache(server, cache):
    load_mnist(held_out=15)
    (cache / TRAIN_IMAGES).write_bytes(b"damaged")
    assert len(load_mnist(held_out=15).train) == 45
    assert server.requested[4:] == [f"/{TRAIN_IMAGES}"]


def test_failed_download_names_every_mirror_and_the_cause(server, cache, monkeypatch):
    mirrors = (f"{server.url}one/", f"{server.url}two/")
    monkeypatch.setattr(data, "MIRRORS", mirrors)
    with pytest.raises(DataError) as caught:
        load_mnist()
    check_message(caught.value, cache / TRAIN_IMAGES, f"no mirror to download it from ({mirrors[0]}: 404")
    assert f"{mirrors[1]}: 404" in str(caught.value)
    assert isinstance(caught.value.__cause__, OSError)


def test_unreachable_mirror(server, cache, monkeypatch):
    server.shutdown()
    server.server_close()
    with pytest.raises(DataError) as caught:
        load_mnist()
    check_message(caught.value, cache / TRAIN_IMAGES, f"no mirror to download it from ({server.url}: ")


def test_download_of_other_content_leaves_nothing_in_the_cache(server, small, cache):
    (small / "mnist" / TRAIN_IMAGES).write_bytes(gzip.compress(b"other"))
    with pytest.raises(DataError) as caught:
        load_mnist()
    found = f"no mirror to download it from ({server.url}: MD5 795f3202b17cb6bc3d4b771d8c6c9eaf)"
    check_message(caught.value, cache / TRAIN_IMAGES, found)
    assert list(cache.iterdir()) == []


def test_cache_is_enough_when_no_download_is_allowed(server):
    with pytest.raises(DataError, match=r"found no such file\. Allow the download, or point --data-dir"):
        load_mnist(download=False)
    assert server.requested == []
    load_mnist(held_out=15)
    assert len(load_mnist(held_out=15, download=False).test) == 20


# ---- images


def test_images_reject_other_types_and_shapes():
    digits, labels = torch.zeros(3, 28, 28, dtype=torch.uint8), torch.zeros(3, dtype=torch.int64)
    with pytest.raises(ValueError, match=r"images: expected torch.uint8 \[3, 28, 28\], got torch.float32"):
        Images(digits.float(), labels)
    with pytest.raises(ValueError, match=r"images: .* got torch.uint8 \[3, 784\]"):
        Images(digits.flatten(1), labels)
    with pytest.raises(ValueError, match=r"labels: expected torch.int64 \[3\], got torch.int64 \[2\]"):
        Images(digits, labels[:2])
    with pytest.raises(ValueError, match=r"labels: .* got torch.uint8"):
        Images(digits, labels.byte())


def test_input_is_scaled_to_the_unit_interval():
    x = to_input(torch.arange(256, dtype=torch.uint8).view(1, 16, 16))
    assert (x.dtype, x.shape) == (torch.float32, (1, 1, 16, 16))
    assert torch.equal(x.flatten(), torch.arange(256) / 255)


# ---- crops


def windows(image, padding):
    """Every crop there can be of one image [1, H, W], the slow way, with its place."""
    _, height, width = image.shape
    padded = torch.zeros(1, height + 2 * padding, width + 2 * padding)
    padded[:, padding : padding + height, padding : padding + width] = image
    places = [(top, left) for top in range(2 * padding + 1) for left in range(2 * padding + 1)]
    return {(i, j): padded[:, i : i + height, j : j + width] for i, j in places}


def test_every_crop_is_a_window_of_its_own_padded_image():
    images = torch.rand(12, 1, 28, 28, generator=torch.Generator().manual_seed(0))
    crops = random_crop(images, generator=torch.Generator().manual_seed(1))
    assert crops.shape == images.shape
    places = []
    for image, crop in zip(images, crops, strict=True):
        found = [place for place, window in windows(image, 4).items() if torch.equal(window, crop)]
        assert len(found) == 1
        places += found
    assert len(set(places)) > 6  # each image has a place of its own


def test_all_places_occur_equally_often():
    count = 8100
    # A single bright pixel says where the window was; the padded image keeps it in every window.
    images = torch.zeros(count, 1, 5, 5)
    images[:, :, 2, 2] = 1
    crops = random_crop(images, padding=1, generator=torch.Generator().manual_seed(0))
    places = crops.flatten(1).argmax(1).bincount(minlength=25).view(5, 5)
    assert places.sum() == places[1:4, 1:4].sum() == count
    expected = count / 9
    chi_square = ((places[1:4, 1:4] - expected) ** 2 / expected).sum()
    assert chi_square < 26.1  # chi-square, 8 degrees of freedom, p = 0.001


def test_no_padding_changes_nothing():
    images = torch.rand(3, 1, 28, 28)
    assert torch.equal(random_crop(images, padding=0, generator=torch.Generator()), images)


def test_crops_depend_on_the_generator_alone():
    images = torch.rand(20, 1, 28, 28)
    first = random_crop(images, generator=torch.Generator().manual_seed(3))
    torch.manual_seed(99)
    assert torch.equal(random_crop(images, generator=torch.Generator().manual_seed(3)), first)
    assert not torch.equal(random_crop(images, generator=torch.Generator().manual_seed(4)), first)


def test_crops_keep_type_and_range_and_do_not_alias():
    images = torch.rand(4, 1, 28, 28, dtype=torch.float64)
    before = images.clone()
    crops = random_crop(images, generator=torch.Generator())
    assert crops.dtype == torch.float64
    assert crops.min() >= 0
    assert crops.max() <= 1
    crops.zero_()
    assert torch.equal(images, before)


def test_crop_rejects_bad_input():
    with pytest.raises(ValueError, match=r"images: expected \[B, 1, 28, 28\], got \[2, 28, 28\]"):
        random_crop(torch.zeros(2, 28, 28), generator=torch.Generator())
    with pytest.raises(ValueError, match=r"padding: .* got -1"):
        random_crop(torch.zeros(2, 1, 28, 28), padding=-1, generator=torch.Generator())


# ---- batches


def numbered(count):
    """Images that carry their number in two pixels far from the border, and in the label modulo 10."""
    images = torch.zeros(count, 28, 28, dtype=torch.uint8)
    images[:, 14, 14], images[:, 14, 15] = torch.arange(count) // 256, torch.arange(count) % 256
    return Images(images, torch.arange(count) % 10)


def numbers(batches):
    """The images' numbers in the order in which unaugmented batches bring them."""
    x = torch.cat([x for x, _ in batches]) * 255
    return (256 * x[:, 0, 14, 14] + x[:, 0, 14, 15]).round().long().tolist()


def test_training_batches_have_type_range_shape_and_drop_the_rest(sample):
    batches = Batches(sample.train, batch_size=128, seed=0, epoch=0)
    got = list(batches)
    assert len(got) == len(batches) == 46  # 6000 = 46 · 128 + 112
    for x, y in got:
        assert (x.dtype, x.shape) == (torch.float32, (128, 1, 28, 28))
        assert (y.dtype, y.shape) == (torch.int64, (128,))
        assert x.min() == 0
        assert 0.9 < x.max() <= 1


def test_evaluation_batches_are_every_image_in_order_as_it_is():
    split = numbered(300)
    batches = Batches.evaluation(split, batch_size=128)
    got = list(batches)
    assert [len(y) for _, y in got] == [128, 128, 44]
    assert len(batches) == 3
    assert torch.equal(torch.cat([x for x, _ in got]), split.images.unsqueeze(1) / 255)
    assert torch.equal(torch.cat([y for _, y in got]), split.labels)


def test_length_when_the_batches_come_out_even():
    assert len(Batches(numbered(256), batch_size=128)) == 2
    assert len(Batches.evaluation(numbered(256), batch_size=128)) == 2


def test_an_epoch_brings_every_image_once_in_another_order():
    batches = Batches(numbered(300), batch_size=60, augment=False)
    assert sorted(numbers(batches)) == list(range(300))
    assert numbers(batches) != list(range(300))


def test_labels_stay_with_their_images():
    batches = Batches(numbered(300), batch_size=64, augment=False)
    labels = torch.cat([y for _, y in batches]).tolist()
    assert labels == [number % 10 for number in numbers(batches)]


def test_augmented_batches_are_crops_of_the_same_images():
    split = numbered(40)
    split.images[:, 10, 10] = 255
    batches = Batches(split, batch_size=20, seed=5)
    plain = dataclasses.replace(batches, augment=False)
    moved = 0
    for (x, y), (crop, label) in zip(plain, batches, strict=True):
        assert torch.equal(y, label)  # augmentation does not change the order
        for image, window in zip(x, crop, strict=True):
            assert any(torch.equal(window, w) for w in windows(image, 4).values())
            moved += not torch.equal(image, window)
    assert moved > 30  # 1 of 81 crops moves nothing


def stream(batches):
    return torch.cat([x.flatten() for x, _ in batches])


def test_batches_are_the_same_for_the_same_seed_and_epoch(sample):
    split = sample.train[:200]
    first = Batches(split, batch_size=50, seed=3, epoch=2)
    expected = stream(first)
    torch.manual_seed(1)
    assert torch.equal(stream(first), expected)  # iterated again
    assert torch.equal(stream(Batches(split, batch_size=50, seed=3, epoch=2)), expected)  # a resumed run
    resumed = dataclasses.replace(Batches(split, batch_size=50, seed=3), epoch=2)
    assert torch.equal(stream(resumed), expected)


def test_two_iterations_at_once_do_not_disturb_each_other(sample):
    batches = Batches(sample.train[:200], batch_size=50)
    expected = [x for x, _ in batches]
    for (x, _), (other, _), right in zip(batches, batches, expected, strict=True):
        assert torch.equal(x, right)
        assert torch.equal(other, right)


def test_every_seed_and_epoch_has_an_order_of_its_own():
    split = numbered(100)
    orders = {
        tuple(numbers(Batches(split, batch_size=50, seed=seed, epoch=epoch, augment=False)))
        for seed in range(4)
        for epoch in range(4)
    }
    assert len(orders) == 16


def test_every_epoch_has_crops_of_its_own(sample):
    split = sample.train[:50]
    first, second = (Batches(split, batch_size=50, epoch=epoch, shuffle=False) for epoch in (0, 1))
    assert not torch.equal(stream(first), stream(second))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"batch_size": 0}, "batch_size: expected 1 or more, got 0"),
        ({"batch_size": 11}, "batch_size: 11 is more than the 10 images"),
        ({"batch_size": 5, "seed": -1}, "seed, epoch: expected 0 or more, got -1, 0"),
        ({"batch_size": 5, "epoch": -1}, "seed, epoch: expected 0 or more, got 0, -1"),
    ],
)
def test_batches_reject_bad_options(options, message):
    with pytest.raises(ValueError, match=message):
        Batches(numbered(10), **options)


def test_evaluation_takes_a_batch_larger_than_the_split():
    assert [len(y) for _, y in Batches.evaluation(numbered(10), batch_size=100)] == [10]
