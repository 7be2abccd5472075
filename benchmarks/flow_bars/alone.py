"""Whether a row of a batch is what it is alone, in double precision."""

import dise
from dise import Multistep, grids
from flow_bars.fields import POINTS, Draws, adams, digits, points
from flow_bars.seen import Seen

BAR = 1e-6
ROWS, IMAGES = 32, 4


def measure() -> Seen:
    """The largest difference of states, and of numbers of evaluations."""
    made = adams()
    integrators: list[dise.Integrator] = [
        Multistep.adams(grids.sway(8), 2),
        Multistep.adams(8, 4),
        dise.Dopri5(rtol=1e-3, atol=1e-3),
        *([made(rtol=1e-3, atol=1e-3)] if made is not None else []),
    ]
    fields = {task: points(task, ROWS).double() for task in POINTS} | {"digits": digits(IMAGES).double()}
    cases = {
        f"{name}, {integrator}": _difference(draws, integrator)
        for name, draws in fields.items()
        for integrator in integrators
    }
    largest, same = max(c["difference"] for c in cases.values()), all(c["same_nfe"] for c in cases.values())
    text = f"{largest:.1e}, {'the same' if same else 'another'} NFE"
    return Seen(text if made is not None else f"{text} (without own-step Adams)", largest <= BAR and same, cases)


def _difference(draws: Draws, integrator: dise.Integrator) -> dict[str, float | bool]:
    together, alone = draws.solve(integrator), [draw.solve(integrator) for draw in draws]
    return {
        "difference": max(float((one.y[0] - y).abs().max()) for one, y in zip(alone, together.y, strict=True)),
        "same_nfe": [int(one.nfe) for one in alone] == together.nfe.tolist(),
    }
