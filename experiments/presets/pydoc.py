"""Language models of Python's own reference, by characters; they need no download.

    python -m experiments train pydoc
    python -m experiments train pydoc-transformer

`pydoc` is a 2-layer LSTM with the recipe of the paper's WikiText-2 but for dropout, and reaches a
test perplexity of 3.8 per character in two and a half minutes of one busy CPU core.
`pydoc-transformer` is a pre-norm transformer with Adam, and reaches 4.5 in four and a half. The
method is the form of the penalty to begin with; these were reached with its strength at 0.2.
"""

import dataclasses

from experiments.config import LanguageModelConfig, OptimizerConfig, TextConfig
from experiments.presets import table3
from experiments.regularizers import GaussNewton

DESCRIPTION = "An LSTM on Python's own reference, by characters; needs no download."
TRANSFORMER_DESCRIPTION = "A small transformer on Python's own reference; needs no download."

CONFIG = dataclasses.replace(
    table3.CONFIG,
    name="pydoc",
    data=TextConfig(),
    model=LanguageModelConfig(network="lstm", width=64),
    method=(GaussNewton(),),
    epochs=6,
    trace_probes=8,
)
TRANSFORMER_CONFIG = dataclasses.replace(
    CONFIG,
    name="pydoc-transformer",
    data=TextConfig(length=64),
    model=LanguageModelConfig(network="transformer", width=64),
    optimizer=OptimizerConfig(
        algorithm="adam", learning_rate=3e-3, schedule="cosine", weight_decay=0.0, clip_norm=1.0
    ),
)
