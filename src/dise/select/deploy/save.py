"""A model's policy saved as files: JSON for what it is, safetensors for its networks' weights."""

import os
from pathlib import Path

from torch import nn

from dise.nn import NeuralODE
from dise.select.deploy.binding import fingerprint, other_blocks, span_of
from dise.select.deploy.forms import POLICIES
from dise.select.deploy.registry import PolicyJson
from dise.select.deploy.unit import write_unit
from dise.select.model.adapt import AdaptedBlock
from dise.select.model.block import find_block


def save_policy(model: nn.Module, folder: str | os.PathLike[str], *, block: NeuralODE | str | None = None) -> None:
    """Write the policy of a model's block to a folder: `policy.json`, and `policy.safetensors` if it has networks.

    The model's own weights are not in it; save them separately. What the policy is for is in it: a hash of the weights,
    the block's span, the reference integrator of its guarantee, and the spans and references of other blocks. Checksums
    protect both files.

    Args:
        model: contains a NeuralODE.
        folder: is made if it does not exist; files of the same names are replaced. Each block's policy needs its own.
        block: the NeuralODE or its name; default: the model's only one.

    Raises:
        ValueError: no such block; or a part of the policy has no JSON form, e.g. a function of your own.
        ImportError: the policy has networks, and safetensors is not installed.
    """
    own, json = find_block(model, block), PolicyJson(POLICIES, model)
    report = own.report
    content = {
        "block": {
            "name": next(name for name, module in model.named_modules() if module is own),
            "span": span_of(own),
            "f": own.field_name if isinstance(own, AdaptedBlock) else None,
        },
        "others": other_blocks(model, own, json),
        "weights": fingerprint(model),
        "reference": None if report is None else json.write(report.reference, "report.reference"),
        "integrator": json.write(own.integrator, "integrator"),
        "autocast": None if own.autocast is None else str(own.autocast).removeprefix("torch."),
        "report": None if report is None else report.to_json(),
    }
    networks: nn.Module | None = getattr(own, "policy", None)
    # rules may share tensors, which safetensors refuses: write each its own
    state = {} if networks is None else networks.state_dict()
    weights = {name: value.detach().cpu().clone().contiguous() for name, value in state.items()}
    write_unit(Path(folder), content, None if networks is None else weights)
