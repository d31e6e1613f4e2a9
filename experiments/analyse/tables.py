"""The tables of an analysis: in the terminal, and on its page."""

from collections.abc import Sequence
from typing import NamedTuple

from rich.table import Table as TerminalTable

from experiments.analyse.measure import Eigenvalue, Estimate, MeasureConfig, Measurement
from experiments.analyse.stability import StepStability
from experiments.analyse.trained import FinishedRun
from experiments.report.tables import NOTHING, Table


class Analysed(NamedTuple):
    """A network and what is known of it.

    Attributes:
        label: What it is called: its method.
        run: The run that trained it.
        measured: What was measured.
        stability: The steps of its training beside its curvature.
    """

    label: str
    run: FinishedRun
    measured: Measurement
    stability: StepStability


def summary_table(config: MeasureConfig, networks: Sequence[Analysed]) -> Table:
    """Lay out the figures of each network, side by side.

    Args:
        config: On which data, and how precisely they were measured.
        networks: The run, and its plain twin if there is one.

    Returns:
        The table.
    """
    headings = ["", *(each.label for each in networks)]
    lines = [["parameters", *(f"{each.measured.num_params:,}" for each in networks)]]
    lines += [["training loss, of these examples", *(f"{n.measured.loss:.4g}" for n in networks)]]
    lines += _results(networks)
    lines += [
        ["largest eigenvalue of H", *(_eigenvalue(n.measured.largest[0]) for n in networks)],
        ["smallest eigenvalue of H", *(_eigenvalue(n.measured.smallest[0]) for n in networks)],
        ["tr(H)", *(estimate(n.measured.hessian.total) for n in networks)],
        ["tr(G)", *(estimate(n.measured.gauss_newton.total) for n in networks)],
        [
            f"loss at ±{_halfway(config)[0]:.3g} on a slice",
            *(f"{halfway_loss(config, n.measured):.4g}" for n in networks),
        ],
        ["learning rate at the start, η", *(f"{n.stability.learning_rate:g}" for n in networks)],
        [
            "η times the largest eigenvalue; limit 2",
            *(f"{n.stability.sharpness:.3g}" for n in networks),
        ],
        *_momentum_limits(networks),
        [
            "learning rate below which it is stable",
            *(_limit(n.stability.max_learning_rate) for n in networks),
        ],
    ]
    errors = (
        "± is a bound on the error of an eigenvalue, and the standard error over random vectors of "
        "a trace: both are about these weights. How other seeds of the same training end is "
        "another question, to which one network gives no answer."
    )
    stability = (
        "Stability is that of plain gradient descent on the loss of all these examples, along its "
        "sharpest direction; with momentum β the limit is 2 (1 + β). Weight decay, the penalty and "
        "the noise of batches play no part in it. No later learning rate was larger than that at "
        "the start."
    )
    remarks = [errors, stability]
    if any(each.stability.momentum_limit is None for each in networks):
        remarks.append(
            "Adam and AdaHessian scale each step by a matrix of their own, so that for them the "
            "limit is no more than a comparison."
        )
    return Table("Curvature", headings, lines, remarks)


def layer_table(networks: Sequence[Analysed]) -> Table:
    """Lay out the traces of each layer, side by side.

    Args:
        networks: The run, and its plain twin if there is one.

    Returns:
        The table.
    """
    first = networks[0].measured
    headings = ["layer", "parameters"]
    headings += [f"tr(H), {each.label}" for each in networks]
    headings += [f"tr(G), {each.label}" for each in networks]
    lines = [
        [
            layer,
            f"{first.layer_sizes[layer]:,}",
            *(estimate(each.measured.hessian.by_layer[layer]) for each in networks),
            *(estimate(each.measured.gauss_newton.by_layer[layer]) for each in networks),
        ]
        for layer in first.layer_sizes
    ]
    return Table("Trace by layer", headings, lines, [])


def terminal_table(table: Table) -> TerminalTable:
    """Show a table in the terminal.

    Args:
        table: The table; its remarks are left out.

    Returns:
        A table for a rich console.
    """
    shown = TerminalTable()
    for i, heading in enumerate(table.headings):
        shown.add_column(heading, justify="right" if i else "left")
    for line in table.lines:
        shown.add_row(*line)
    return shown


def estimate(value: Estimate) -> str:
    """Write down a mean with its standard error.

    Args:
        value: The estimate.

    Returns:
        One phrase.
    """
    return _with_error(f"{value.mean:.4g}", f"{value.standard_error:.2g}")


def halfway_loss(config: MeasureConfig, measured: Measurement) -> float:
    """Average the loss over all slices, halfway to both of their ends.

    Args:
        config: Where the slices were measured.
        measured: What was measured.

    Returns:
        The mean loss.
    """
    _, index = _halfway(config)
    return float(measured.slices[:, [index, -1 - index]].mean())


def _halfway(config: MeasureConfig) -> tuple[float, int]:
    index = (config.slice_points - 1) // 4
    return abs(float(config.slice_positions[index])), index


def _eigenvalue(value: Eigenvalue) -> str:
    return _with_error(f"{value.value:.4g}", f"{value.residual:.1g}")


def _with_error(value: str, error: str) -> str:
    # On a narrow page a line may end at a space or a hyphen.
    whole = f"{value}\N{NO-BREAK SPACE}±\N{NO-BREAK SPACE}{error}"
    return whole.replace("-", "\N{MINUS SIGN}")


def _limit(learning_rate: float) -> str:
    return f"{learning_rate:.3g}" if learning_rate > 0 else NOTHING


def _results(networks: Sequence[Analysed]) -> list[list[str]]:
    """Take what the runs themselves have measured on data that they did not see."""
    shown = {
        "test_loss": ("test loss", "{:.4f}"),
        "test_accuracy": ("test accuracy", "{:.2%}"),
        "test_perplexity": ("test perplexity", "{:.2f}"),
    }
    return [
        [heading, *(_shown(layout, each.run.result.get(name)) for each in networks)]
        for name, (heading, layout) in shown.items()
        if any(name in each.run.result for each in networks)
    ]


def _shown(layout: str, value: float | None) -> str:
    return NOTHING if value is None else layout.format(value)


def _momentum_limits(networks: Sequence[Analysed]) -> list[list[str]]:
    limits = [each.stability.momentum_limit for each in networks]
    if all(limit in {None, 2.0} for limit in limits):
        return []
    return [
        ["limit with momentum", *(NOTHING if each is None else f"{each:.3g}" for each in limits)]
    ]
