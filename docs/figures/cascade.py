"""Which integrator each point of two spirals gets from a cascade: cheap ones first, better ones near the boundary."""

from pathlib import Path

import torch
from matplotlib.figure import Figure
from style import BLUE, ORANGE, RED, panels, save
from torch import Tensor, nn

import dise


class Field(nn.Module):
    """The field of the page `make-dynamic`, [n, 2]."""

    def __init__(self) -> None:
        super().__init__()
        self.layers = nn.Sequential(nn.Linear(3, 32), nn.Tanh(), nn.Linear(32, 2))

    def forward(self, t: Tensor, h: Tensor) -> Tensor:
        """dh/dt."""
        return self.layers(torch.cat([torch.ones_like(h[:, :1]) * t, h], dim=1))


def spirals(number: int, seed: int) -> tuple[Tensor, Tensor]:
    """Points of two arms that wind around each other, and the arm of each."""
    draw = torch.Generator().manual_seed(seed)
    arm, angle = torch.randint(2, (number,), generator=draw), 1 + 4 * torch.rand(number, generator=draw)
    turned = angle + torch.pi * arm
    noise = 0.1 * torch.randn(number, 2, generator=draw)
    return torch.stack([turned.cos(), turned.sin()], 1) * angle[:, None] / 2 + noise, arm


def draw() -> Figure:
    """Left: the two classes. Right: the candidate whose answer the cascade kept."""
    model = nn.Sequential(dise.NeuralODE(Field(), dise.RK4(4)), nn.Linear(2, 2))
    optimizer = torch.optim.Adam(model.parameters(), lr=0.02)
    x, y = spirals(512, seed=0)
    for _ in range(300):
        optimizer.zero_grad()
        nn.functional.cross_entropy(model(x), y).backward()
        optimizer.step()
    reference = dise.Dopri5()
    rules = [dise.Confidence(model[1], threshold, measure="gap") for threshold in (6.0, 3.0)]
    cascade = dise.Cascade((dise.Euler(1), dise.RK4(1), reference), rules)
    x, arm = spirals(600, seed=1)
    with torch.no_grad():
        solution = dise.solve(model[0].f, x, 0.0, 1.0, cascade)
    figure, (left, right) = panels(2, height=3.6)
    for label, color in ((0, BLUE), (1, RED)):
        left.plot(*x[arm == label].T, ".", ms=4, color=color, rasterized=True)
    left.set(title="the two classes", aspect="equal")
    for index, (name, color) in enumerate((("Euler", BLUE), ("RK4", ORANGE), ("Dopri5", RED))):
        some = solution.choice == index
        right.plot(
            *x[some].T, ".", ms=4, color=color, rasterized=True, label=f"{name}: {100 * some.double().mean():.0f} %"
        )
    right.set(title=f"whose answer was kept; {solution.nfe.double().mean():.1f} evaluations", aspect="equal")
    right.legend(loc="center left", bbox_to_anchor=(1, 0.5), markerscale=2)
    return figure


if __name__ == "__main__":
    save(draw, Path(__file__))
