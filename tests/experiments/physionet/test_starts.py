import torch
from torch.testing import assert_close

from dise import RK4
from dise.select import find_block
from dise_experiments.physionet import starts
from dise_experiments.physionet.model import LatentODE
from dise_experiments.physionet.starts import FromStarts, Starts, encoded
from dise_experiments.physionet.stays import Stays


def model(head="z_end"):
    torch.manual_seed(0)
    return LatentODE(head).eval()


def test_records_are_encoded_once_in_their_order(records, monkeypatch):
    monkeypatch.setattr(starts, "TEST_BATCH", 2)
    latent = model()
    batches = encoded(latent, records)
    assert [len(x) for x, _ in batches] == [2, 2, 1]
    assert torch.cat([labels for _, labels in batches]).tolist() == records.labels.tolist()
    whole = Stays.of(records)
    with torch.no_grad():
        mean, deviation = latent.encoder(whole)
    for name, expected in {"mean": mean, "deviation": deviation, "end": whole.end}.items():
        assert_close(torch.cat([getattr(x, name) for x, _ in batches]), expected, rtol=1e-4, atol=1e-5)
    assert not any(x.mean.requires_grad for x, _ in batches)


@torch.no_grad()
def test_what_is_left_of_the_model_says_what_the_model_says(records):
    for head in ("z_end", "z0"):
        latent = model(head)
        ((x, _),) = encoded(latent, records)
        for integrator in (latent.block.integrator, RK4()):
            with latent.block.using(integrator):
                assert_close(FromStarts(latent)(x), latent(Stays.of(records)))


def test_it_has_the_models_own_block():
    latent = model()
    assert find_block(FromStarts(latent)) is latent.block


def test_starts_move_as_a_tensor_does():
    x = Starts(torch.zeros(3, 20), torch.ones(3, 20), torch.ones(3))
    assert (len(x), x.device) == (3, torch.device("cpu"))
    moved = x.to("meta")
    assert {tensor.device.type for tensor in (moved.mean, moved.deviation, moved.end)} == {"meta"}
    assert moved.device == torch.device("meta")
