import pytest
import scipy.linalg
import torch

from dise_experiments.flows.frechet import Classifier, digit_classifier, frechet_distance
from dise_experiments.mnist.data import load_mnist_sample, to_input


def normal(n, dim=4, seed=0):
    generator = torch.Generator().manual_seed(seed)
    mixing = torch.randn(dim, dim, generator=generator, dtype=torch.float64)
    return torch.randn(n, dim, generator=generator, dtype=torch.float64) @ mixing + mixing[0]


def test_the_distance_is_that_of_scipys_matrix_root():
    x, y = normal(200), normal(300, seed=1)
    A, B = x.T.cov(), y.T.cov()
    root = torch.from_numpy(scipy.linalg.sqrtm((A @ B).numpy()).real)
    expected = (x.mean(0) - y.mean(0)).square().sum() + (A + B - 2 * root).trace()
    assert frechet_distance(x, y) == pytest.approx(float(expected), rel=1e-6)


def test_the_distance_of_a_shift_is_its_square_and_of_a_scale_the_deviations():
    x = normal(500)
    assert frechet_distance(x, x + 2.0) == pytest.approx(4.0 * 4, rel=1e-9)
    assert frechet_distance(x, x) == pytest.approx(0.0, abs=1e-9)
    centred = x - x.mean(0)
    assert frechet_distance(centred, 3 * centred) == pytest.approx(4 * float(centred.var(0).sum()), rel=1e-9)


def test_fewer_rows_than_features_are_taken():
    assert frechet_distance(normal(3, dim=8), normal(3, dim=8)) == pytest.approx(0.0, abs=1e-5)


@pytest.mark.parametrize(
    ("x", "y"),
    [
        (torch.zeros(3, 2), torch.zeros(3, 3)),
        (torch.zeros(1, 2), torch.zeros(3, 2)),
        (torch.zeros(3), torch.zeros(3)),
        (torch.zeros(3, 2), torch.full((3, 2), torch.nan)),
    ],
)
def test_other_features_are_refused(x, y):
    with pytest.raises(ValueError, match="x, y"):
        frechet_distance(x, y)


@pytest.mark.long
def test_the_classifier_learns_is_kept_and_leaves_the_generator_alone(tmp_path):
    digits, file = load_mnist_sample(), tmp_path / "classifier.safetensors"
    state = torch.get_rng_state()
    trained = digit_classifier(digits.train, file, iterations=200)
    assert torch.equal(torch.get_rng_state(), state)
    x = 2 * to_input(digits.test.images) - 1
    with torch.no_grad():
        assert (trained(x).argmax(1) == digits.test.labels).double().mean() > 0.8
        again = digit_classifier(digits.train[:1], file)
        assert torch.equal(again.features(x), trained.features(x))
        assert trained.features(x).shape == (len(x), 32)
        # the ones are farther from all digits than one half of all is from the other
        same = frechet_distance(trained.features(x[::2]), trained.features(x[1::2]))
        ones = frechet_distance(trained.features(x), trained.features(x[digits.test.labels == 1]))
    assert ones > 5 * same


def test_features_are_not_those_of_another_row():
    classifier, x = Classifier().double().eval(), torch.randn(4, 1, 28, 28, dtype=torch.float64)
    torch.testing.assert_close(classifier.features(x)[2:3], classifier.features(x[2:3]))
