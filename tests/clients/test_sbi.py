"""sbi's posteriors on dise, against sbi's own backend."""

import copy
import pickle
from importlib import import_module

import pytest
import torch
from torch.testing import assert_close

import dise

sbi = pytest.importorskip("sbi.inference")
utils = pytest.importorskip("sbi.utils")
client = import_module("dise.clients.sbi")

X = torch.tensor([[0.3, -0.2]])


def trained(method, **options):
    """A posterior of a linear Gaussian model in two dimensions, hardly trained."""
    torch.manual_seed(0)
    prior = utils.BoxUniform(-2 * torch.ones(2), 2 * torch.ones(2), device="cpu")
    theta = prior.sample((200,))
    x = theta + 0.5 * torch.randn_like(theta)
    trainer = method(prior, **options)
    trainer.append_simulations(theta, x).train(max_num_epochs=2, training_batch_size=100)
    posterior = trainer.build_posterior(sample_with="ode")
    posterior.set_default_x(X)
    return posterior


@pytest.fixture(scope="module")
def posteriors(tmp_path_factory):
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(tmp_path_factory.mktemp("sbi"))  # sbi writes logs of its trainings into the working directory
        return {"FMPE": trained(sbi.FMPE), "NPSE": trained(sbi.NPSE)}


@pytest.fixture(params=["FMPE", "NPSE"])
def pair(request, posteriors):
    """A posterior, and a copy of it on dise."""
    theirs = posteriors[request.param]
    ours = copy.deepcopy(theirs)
    client.use(ours)
    return theirs, ours


def test_samples_and_log_densities_are_sbis(pair):
    theirs, ours = pair
    for posterior in pair:
        torch.manual_seed(1)
        posterior.drawn = posterior.sample((20,), show_progress_bars=False)
    assert_close(ours.drawn, theirs.drawn, rtol=1e-3, atol=1e-3)
    assert_close(ours.log_prob(theirs.drawn), theirs.log_prob(theirs.drawn), rtol=1e-3, atol=2e-3)
    assert ours.log_prob(torch.tensor([[3.0, 0.0]])).item() == -torch.inf  # outside of the prior


def test_map_is_sbis(pair):
    theirs, ours = pair
    for posterior in pair:
        torch.manual_seed(1)
        posterior.found = posterior.map(
            num_iter=2,
            num_to_optimize=2,
            init_method=torch.tensor([[0.1, 0.1], [1.5, 1.5]]),
            save_best_every=2,
            force_update=True,
        )
    assert_close(ours.found, theirs.found, rtol=0, atol=5e-3)


def test_other_observations_several_and_in_a_batch(pair):
    theirs, ours = pair
    theta, other = torch.zeros(3, 2), torch.tensor([[0.5, 0.5]])
    assert_close(ours.log_prob(theta, x=other), theirs.log_prob(theta, x=other), rtol=1e-3, atol=2e-3)
    iid = torch.cat([X, other])
    assert_close(ours.log_prob(theta, x=iid), theirs.log_prob(theta, x=iid), rtol=1e-3, atol=4e-3)
    for posterior in pair:
        torch.manual_seed(1)
        posterior.drawn = posterior.sample_batched((4,), x=iid, show_progress_bars=False)
    assert ours.drawn.shape == (4, 2, 2)
    assert_close(ours.drawn, theirs.drawn, rtol=1e-3, atol=1e-3)


@pytest.fixture
def double():
    """Double precision as torch's default, which sbi's embeddings of time have."""
    torch.set_default_dtype(torch.float64)
    yield
    torch.set_default_dtype(torch.float32)


@pytest.mark.usefixtures("double")
def test_a_row_alone_is_the_row_in_the_batch(pair):
    """In float64: samples from the same noise, and log-densities."""
    _, ours = pair
    ode = copy.deepcopy(ours.potential_fn.neural_ode)
    estimator = ode.f.__self__.double()
    ode.net, ode.mean_base, ode.std_base = estimator.net, estimator.mean_base, estimator.std_base
    posterior = ode(X.double())
    z = 1.5 * torch.randn(5, 1, 2, dtype=torch.float64)
    with torch.no_grad():
        theta = posterior.transform.inv(z)
        log_prob = posterior.log_prob(theta)
        for i in range(5):
            assert_close(posterior.transform.inv(z[i : i + 1]), theta[i : i + 1], rtol=0, atol=1e-6)
            assert_close(posterior.log_prob(theta[i : i + 1]), log_prob[i : i + 1], rtol=0, atol=1e-6)


def test_tolerances_in_the_call_and_any_integrator(posteriors):
    ours = copy.deepcopy(posteriors["FMPE"])
    client.use(ours)
    theta = torch.randn(5, 2).clamp(-1, 1)
    tight = ours.log_prob(theta, ode_kwargs={"atol": 1e-7, "rtol": 1e-7})
    ours = copy.deepcopy(ours)
    client.use(ours, dise.RK4(40))
    assert_close(ours.log_prob(theta), tight, rtol=0, atol=2e-2)
    assert_close(ours.log_prob(theta, ode_kwargs={"atol": 1e-7}), ours.log_prob(theta))  # fixed steps have none
    client.use(ours, dise.Adams(rtol=1e-2, atol=1e-2, order=3))
    loose = ours.log_prob(theta)
    assert not torch.equal(loose, tight)
    assert_close(ours.log_prob(theta, ode_kwargs={"atol": 1e-6, "rtol": 1e-6}), tight, rtol=0, atol=2e-3)
    assert_close(ours.log_prob(theta), loose)
    estimated = ours.log_prob(theta, ode_kwargs={"exact": False})
    assert estimated.isfinite().all()
    assert not torch.equal(estimated, loose)


def test_gradients_in_theta(posteriors):
    ours = copy.deepcopy(posteriors["FMPE"])
    client.use(ours)
    theta = torch.zeros(3, 2, requires_grad=True)
    (gradient,) = torch.autograd.grad(ours.log_prob(theta, track_gradients=True).sum(), theta)
    steps = 0.01 * torch.eye(2)
    high, low = (ours.log_prob(sign * steps) for sign in (1, -1))
    assert_close(gradient[0], (high - low) / 0.02, rtol=5e-2, atol=5e-2)


def test_the_flow_of_a_posterior(posteriors):
    posterior = copy.deepcopy(posteriors["FMPE"])
    flow = client.flow(posterior, dise.Dopri5(rtol=1e-6, atol=1e-6))
    theta = torch.zeros(3, 2)
    with torch.no_grad():
        assert_close(flow.log_prob(theta, X), posterior.log_prob(theta), rtol=1e-3, atol=2e-3)
        assert flow.sample(5, X.expand(5, 2)).shape == (5, 2)
        assert_close(client.flow(posterior, flow.block.integrator, x=X).log_prob(theta), flow.log_prob(theta, X))
    with pytest.raises(ValueError, match=r"x: expected one observation \[1, ...\], got shape \[2, 2\]"):
        client.flow(posterior, x=X.expand(2, 2))
    fit = dise.fit_solver(flow, 4, condition=lambda n: X.expand(n, 2), draws=64, iterations=3)
    client.use(posterior, fit.solver)
    assert posterior.sample((10,), show_progress_bars=False).shape == (10, 2)


def test_a_posterior_on_dise_is_pickled(posteriors):
    ours = copy.deepcopy(posteriors["FMPE"])
    client.use(ours)
    again = pickle.loads(pickle.dumps(ours))
    theta = torch.zeros(3, 2)
    assert_close(again.log_prob(theta), ours.log_prob(theta))


def test_what_is_no_posterior_is_refused(posteriors):
    with pytest.raises(TypeError, match=r"posterior: expected a VectorFieldPosterior.*, got int"):
        client.use(3)
    with pytest.raises(TypeError, match="integrator: expected an integrator"):
        client.use(posteriors["FMPE"], "zuko")
    with pytest.raises(ValueError, match="log_prob_tolerance: expected a finite number above 0, got -1"):
        client.use(posteriors["FMPE"], log_prob_tolerance=-1)
    other = copy.deepcopy(posteriors["FMPE"])
    client.use(other)
    with pytest.raises(ValueError, match=r"condition: expected shape \[..., 2\], got \[1, 3\]"):
        other.potential_fn.neural_ode(torch.zeros(1, 3))
