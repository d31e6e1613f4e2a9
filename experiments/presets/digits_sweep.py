"""Plain training, SEHT-D and SEHT-H at three strengths on digits; needs no download.

    python -m experiments sweep digits-small --seeds 3
    python -m experiments report runs/sweeps/digits-small

The 21 runs take about twenty minutes on two CPU cores, most of it compilation. With six epochs it
shows how a sweep works, and nothing about the methods.
"""

import dataclasses

from experiments.presets import digits
from experiments.regularizers import SehtD, SehtH
from experiments.sweep.definition import Row, Sweep

_STRENGTHS = (1e-4, 3e-4, 1e-3)
_PLAIN = dataclasses.replace(digits.CONFIG, epochs=6, method=())

SWEEP = Sweep(
    name="digits-small",
    title="Digits, a small residual network",
    rows=(
        Row("Plain", _PLAIN),
        Row(
            "SEHT-D (maxIter=1, prob=0.05)",
            dataclasses.replace(_PLAIN, method=(SehtD(warmup_steps=30, num_branches=1),)),
            grid={"seht-d.lam": _STRENGTHS},
        ),
        Row(
            "SEHT-H (maxIter=1)",
            dataclasses.replace(_PLAIN, method=(SehtH(warmup_steps=30),)),
            grid={"seht-h.lam": _STRENGTHS},
        ),
    ),
)
