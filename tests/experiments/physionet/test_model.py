import pytest
import torch
from torch import nn
from torch.testing import assert_close

from dise import Dopri5, solve
from dise_experiments.physionet.model import LATENT, LatentODE, VectorField
from dise_experiments.physionet.stays import Stays


def parameters(module):
    return sum(p.numel() for p in module.parameters())


@pytest.fixture
def model():
    torch.manual_seed(0)
    return LatentODE().double()


@pytest.fixture
def stays(records):
    noise = torch.randn(3, 5, LATENT, generator=torch.Generator().manual_seed(1))
    stays = Stays.of(records, noise=noise.double())
    # in double precision
    return type(stays)(**{k: v.double() if isinstance(v, torch.Tensor) and v.is_floating_point() else v
                          for k, v in vars(stays).items()})  # fmt: skip


@pytest.mark.parametrize(
    ("part", "number"),
    [
        ("encoder.field", 11_740), ("encoder.unit", 32_610), ("encoder.posterior", 12_140), ("encoder", 56_490),
        ("block", 9_720), ("decoder", 861), ("classifier", 96_901), ("", 163_972),
    ],
)  # fmt: skip
def test_published_sizes(part, number):
    assert parameters(LatentODE().get_submodule(part)) == number


def test_initial_weights_are_normal_of_deviation_a_tenth():
    torch.manual_seed(0)
    layers = [module for module in LatentODE().modules() if isinstance(module, nn.Linear)]
    weights = torch.cat([layer.weight.flatten() for layer in layers])
    assert weights.std().item() == pytest.approx(0.1, rel=0.02)
    assert weights.mean().item() == pytest.approx(0, abs=1e-3)
    assert all((layer.bias == 0).all() for layer in layers)


def gated(unit, h, x):
    """The published unit, spelt out: update, reset and candidate of [mean, deviation, x] by separate layers."""
    mean, deviation = h.chunk(2, 1)
    seen = torch.cat([mean, deviation, x], 1)
    of_update, of_reset = unit.gates(seen).tanh().chunk(2, 1)
    u, r = unit.update(of_update).sigmoid(), unit.reset(of_reset).sigmoid()
    inner = unit.candidate(torch.cat([mean * r, deviation * r, x], 1)).tanh()
    new_mean, new_deviation = unit.renew(inner).chunk(2, 1)
    return torch.cat([(1 - u) * new_mean + u * mean, (1 - u) * new_deviation.abs() + u * deviation], 1)


@pytest.mark.parametrize("emptied", [[], [0, 3]], ids=["as it is", "two rows of which nothing is left"])
@torch.no_grad()
def test_the_encoder_is_the_published_one_record_by_record(model, stays, emptied):
    """Euler steps of the mean and a gated unit at each observation, backwards, one record and one step at a time."""
    encoder, walk = model.encoder, stays.walk
    stays.mask[emptied], stays.values[emptied] = 0, 0
    mean, deviation = encoder(stays)
    ends = torch.tensor(walk.sizes).cumsum(0).tolist()
    for b in range(len(stays)):
        place = int(walk.place[b])
        h = torch.zeros(1, 80, dtype=torch.float64)
        for end, size in zip(ends, walk.sizes, strict=True):
            if place >= size:
                break
            i = end - size + place
            moved = h[:, :40] + (walk.t_next[i] - walk.t[i]).double() * encoder.field(None, h[:, :40])
            h = torch.cat([moved, h[:, 40:]], 1)
            row = int(walk.row[i])
            if row >= 0 and stays.mask[row].any():
                h = gated(encoder.unit, h, torch.cat([stays.values[row], stays.mask[row]])[None])
        expected_mean, expected_deviation = encoder.posterior(h).chunk(2, 1)
        assert_close(mean[b : b + 1], expected_mean)
        assert_close(deviation[b : b + 1], expected_deviation.abs())


@torch.no_grad()
def test_a_record_is_encoded_the_same_whatever_is_beside_it(make_records, times):
    torch.manual_seed(0)
    model, together = LatentODE(), make_records(*times)
    mean, _ = model.encoder(Stays.of(together))
    for b in range(len(times)):
        alone, _ = model.encoder(Stays.of(together[b : b + 1]))
        assert_close(mean[b : b + 1], alone, atol=1e-5, rtol=1e-4)


@torch.no_grad()
def test_z_end_is_the_state_at_each_stays_own_last_time(model, stays):
    mean, _ = model.encoder(stays)
    for b in range(len(stays)):
        z = solve(model.block.f, mean[b : b + 1], 0.0, stays.end[b : b + 1].double(), Dopri5(rtol=1e-3, atol=1e-4)).y
        assert_close(model(stays)[b], model.classifier(z)[0, 0])


@torch.no_grad()
def test_z0_needs_no_solve(stays):
    model = LatentODE("z0").double()
    mean, _ = model.encoder(stays)
    with model.block.recording() as solves:
        assert_close(model(stays), model.classifier(mean).squeeze(1))
    assert solves == []


@pytest.mark.parametrize("head", ["z0", "z_end"])
@torch.no_grad()
def test_reconstruction_follows_every_sample_through_its_stays_times(stays, head):
    torch.manual_seed(0)
    model = LatentODE(head).double()
    model.block.integrator = Dopri5(rtol=1e-9, atol=1e-9)
    made = model.reconstruct(stays)
    assert made.values.shape == (3, len(stays.times), 41)
    assert made.logits.shape == (3, 5)
    mean, deviation = model.encoder(stays)
    z0 = mean + deviation * stays.noise
    for m in range(len(stays.times)):
        b = int(stays.stay[m])
        t = stays.times[m : m + 1].double().expand(3)
        z = solve(model.block.f, z0[:, b], 0.0, t, Dopri5(rtol=1e-10, atol=1e-10)).y
        assert_close(made.values[:, m], model.decoder(z), atol=1e-6, rtol=1e-6)
    read = z0 if head == "z0" else torch.stack(
        [solve(model.block.f, z, 0.0, stays.end.double(), Dopri5(rtol=1e-10, atol=1e-10)).y for z in z0]
    )  # fmt: skip
    assert_close(made.logits, model.classifier(read).squeeze(-1), atol=1e-6, rtol=1e-6)


def test_every_parameter_learns(stays):
    model = LatentODE().double()
    made = model.reconstruct(stays)
    (made.values.square().sum() + made.logits.square().sum()).backward()
    assert all(p.grad is not None and p.grad.isfinite().all() for p in model.parameters())


def test_field_does_not_look_at_the_time():
    field, y = VectorField(3), torch.ones(2, 3)
    assert torch.equal(field(torch.tensor(0.0), y), field(torch.tensor(7.0), y))
