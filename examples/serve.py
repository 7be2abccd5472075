"""Serve a model that `dise.export_policy` wrote. Needs torch alone.

python examples/serve.py FOLDER INPUT.pt OUTPUT.pt
"""

import json
import sys
from pathlib import Path

import torch


class Served:
    """Inputs [B, ...], one or several → outputs [B, ...], each by the candidate that the policy gives it."""

    def __init__(self, folder: Path) -> None:
        self.policy = json.loads((folder / "serve.json").read_text())
        names = ["start", *(f"candidate-{i}" for i in range(len(self.policy["candidates"])))]
        names = {"single": ["model"], "cascade": names, "dynamic": [*names, "scores"]}[self.policy["kind"]]
        self.graphs = {name: torch.export.load(folder / f"{name}.pt2").module() for name in names}

    @torch.no_grad()
    def __call__(self, *x: torch.Tensor) -> torch.Tensor:
        """Outputs in the inputs' order."""
        if "model" in self.graphs:  # one integrator for all
            return self.graphs["model"](*x)
        states = self.graphs["start"](*x)  # h(t0), its derivative, and the conditions
        left, output = torch.arange(len(states[0]), device=states[0].device), None
        choice = self.graphs["scores"](*states).argmin(1) if "scores" in self.graphs else None
        for i in range(len(self.policy["candidates"])):
            rows = left if choice is None else (choice == i).nonzero().flatten()
            if len(rows) > 0:
                answer, confidence = self.graphs[f"candidate-{i}"](*(state[rows] for state in states))
                output = answer.new_empty(len(states[0]), *answer.shape[1:]) if output is None else output
                output[rows] = answer
                if choice is None:
                    threshold = [*self.policy["thresholds"], float("-inf")][i]
                    left = rows[~(confidence >= threshold)]
        return output


if __name__ == "__main__":
    folder, source, target = map(Path, sys.argv[1:])
    x = torch.load(source, weights_only=True)
    torch.save(Served(folder)(*(x if isinstance(x, tuple) else (x,))), target)
