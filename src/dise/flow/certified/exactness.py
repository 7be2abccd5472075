"""Whether a reference is exact to the risk's tolerance: what it loses beside itself at tighter tolerances."""

from collections.abc import Sequence
from dataclasses import replace

import torch
from torch import nn

from dise.integrate import Integrator
from dise.integrate.exact import Exact, inner
from dise.integrate.integrators import ErrorControlled
from dise.nn import NeuralODE
from dise.select.guarantee.risk import Risk, losses
from dise.select.model.data import Batch
from dise.select.model.run import run_model

CHECKED = 256  # draws, at most
TIGHTER = 0.1  # tolerances, as a part of the reference's
ROUNDING = 8  # units in the last place: smaller tolerances than this measure rounding


def own_losses(
    model: nn.Module, block: NeuralODE, batches: Sequence[Batch], reference: Integrator, risk: Risk
) -> str | None:
    """A note if the reference itself loses draws beside a tighter one; None if it does not, or has no tighter one.

    A candidate is judged by its distance from the reference, so it cannot be certified where the reference is far from
    the exact answer, however exact the candidate is.

    Args:
        model: contains the block.
        block: the flow's.
        batches: draws, of which the first are solved.
        reference, risk: see `make_sampler`.
    """
    lost, number = 0.0, 0
    for batch in batches:
        inputs = batch.inputs.take(slice(CHECKED - number))
        if not len(inputs):
            break
        ours = run_model(model, block, reference, inputs).output
        tight = tighter(reference, ours.dtype)
        if tight is None:
            return None
        lost += float(losses(risk, ours, run_model(model, block, Exact(tight), inputs).output, batch.target).sum())
        number += len(inputs)
    if not lost:
        return None
    return (
        f"The reference itself loses {lost:.3g} of {number} draws beside a solve at a tenth of its tolerances, and its "
        "errors count as the candidates'. Take a tighter reference."
    )


def tighter(reference: Integrator, dtype: torch.dtype) -> ErrorControlled | None:
    """The reference with a tenth of its tolerances; None if it has none, or so small ones that rounding is larger."""
    reference = inner(reference)
    if not isinstance(reference, ErrorControlled):
        return None
    rtol, atol = reference.rtol, reference.atol
    if not (isinstance(rtol, int | float) and isinstance(atol, int | float)):
        return None
    if TIGHTER * max(rtol, atol) < ROUNDING * torch.finfo(dtype).eps:
        return None
    return replace(reference, rtol=TIGHTER * rtol, atol=TIGHTER * atol)
