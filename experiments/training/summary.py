"""The result of a run as a small table."""

from collections.abc import Mapping
from typing import Any

from rich.console import Group
from rich.table import Table

_TRACE = {
    "trace",
    "trace_standard_error",
    "gauss_newton_trace",
    "gauss_newton_trace_standard_error",
    "trace_examples",
}


def summary_table(result: Mapping[str, Any]) -> Group:
    """Lay out what `train` returns.

    Args:
        result: The result of a run.

    Returns:
        A table with a heading and remarks, for a rich console.
    """
    is_text = "train_tokens" in result
    examples = "windows of training text" if is_text else "training images"
    epoch = (
        f"epoch {result['best_epoch']} of {result['epochs']}, the best on validation"
        if "best_epoch" in result
        else f"epoch {result['epochs']}, the last"
    )
    heading = f"{result['name']}, {' '.join(result['method'])}, seed {result['seed']}: {epoch}"
    table = Table()
    table.add_column("")
    table.add_column("loss", justify="right")
    figure_name = "perplexity" if is_text else "accuracy"
    table.add_column(figure_name, justify="right")
    for split in ("train", "validation", "test"):
        if f"{split}_loss" in result and f"{split}_{figure_name}" in result:
            figure = (
                f"{result[f'{split}_{figure_name}']:.2f}"
                if is_text
                else f"{100 * result[f'{split}_{figure_name}']:.2f} %"
            )
            table.add_row(split, f"{result[f'{split}_loss']:.4f}", figure)
    seconds, step_time = result["training_seconds"], 1e3 * result["median_step_time"]
    remarks = f"{result['steps']} steps in {seconds:.0f} s, {step_time:.0f} ms each (median). "
    if result.keys() >= _TRACE:
        remarks += (
            f"tr(H) = {result['trace']:.4g} ± {result['trace_standard_error']:.2g} and tr(G) = "
            f"{result['gauss_newton_trace']:.4g} ± "
            f"{result['gauss_newton_trace_standard_error']:.2g} on "
            f"{result['trace_examples']} {examples} as one batch. "
        )
    remarks += (
        "Losses with nothing dropped."
        if is_text
        else "Losses with BatchNorm's running statistics, images not augmented."
    )
    return Group(heading, table, remarks)
