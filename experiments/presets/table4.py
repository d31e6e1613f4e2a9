"""Table 4 of the paper: a 2-layer GRU language model on WikiText-2, one row for each method.

    python -m experiments sweep table4 --seeds 5 --data-dir DIR
    python -m experiments report runs/sweeps/table4

As Table 3 (`table3.py`), with the settings that the paper chose for the GRU: dropout 0.3, label
smoothing 0.05, confidence penalty 0.005, and SEHT-D with the strength 0.001 and p = 0.01. The
paper's figures are a test perplexity of 111.64 for the baseline and of 109.03 for SEHT-D. The same
grids and twins exist, and take the same time:

    python -m experiments sweep table4-grid --seeds 5 --data-dir DIR
    python -m experiments sweep table4-small --seeds 1 --data-dir DIR
    python -m experiments sweep table4-grid-small --seeds 1 --data-dir DIR
"""

from experiments.presets.table3 import BASELINE, LanguageTable, language_sweeps

TABLE = LanguageTable(
    name="table4",
    title="GRU on WikiText-2 (Table 4)",
    network="gru",
    dropout=0.3,
    label_smoothing=0.05,
    confidence_penalty=0.005,
    lam=0.001,
    p=0.01,
    tried_p=(0.01,),
    figures={
        BASELINE: ((119.04, 2.38), (111.64, 1.87)),
        "Confidence penalty": ((116.40, 0.08), (109.27, 0.03)),
        "Label smoothing": ((117.47, 0.24), (110.46, 0.45)),
        "SEHT-D": ((116.21, 0.31), (109.03, 0.15)),
    },
)
SWEEPS = language_sweeps(TABLE)
