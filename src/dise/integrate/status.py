"""How the integration of a sample ends: its status, and the message and advice for each failure."""

from enum import IntEnum


class Status(IntEnum):
    """How the integration of one sample ended."""

    SUCCESS = 0
    RUNNING = 1  # inside the loop only
    NON_FINITE = 2
    STEP_UNDERFLOW = 3
    MAX_STEPS = 4
    DT_MIN = 5
    EVENT_NAN = 6


NO_EVENT = (  # the same for MAX_STEPS of a solve with events
    "max_steps steps were not enough, and no event stopped the sample",
    "check that the event can happen after this t, and its direction; give a finite t1; or raise the integrator's "
    "max_steps",
)
FAILURES = {  # what happened, and what to try
    Status.NON_FINITE: (
        "f or the state became NaN or infinite",
        "check y0 and f at this t; take more steps, a smaller first_step or a tighter tolerance",
    ),
    Status.STEP_UNDERFLOW: (
        "the step size fell below what the time's precision resolves",
        "loosen rtol/atol, take fewer steps, move t nearer to 0, or check f for a singularity or stiffness near this t",
    ),
    Status.DT_MIN: (
        "a step of length dt_min was not accurate enough",
        "lower dt_min or loosen rtol/atol; accept_at_dt_min=True accepts such steps",
    ),
    Status.MAX_STEPS: (
        "max_steps steps were not enough",
        "raise the integrator's max_steps or loosen rtol/atol; a stiff or badly scaled f needs many steps",
    ),
    Status.EVENT_NAN: (
        "the function of an event became NaN, so whether the event happened is unknown",
        "check the function at this t and y: it needs a sign wherever the solution goes, for which ±inf will do, too; "
        "torch.clamp keeps arguments of a logarithm or a root within its domain",
    ),
}
