"""Terminal output of a selection: the ranking and the chosen model."""

from __future__ import annotations

from collections.abc import Sequence

from rich.box import SIMPLE
from rich.console import Console

from raymi.formatting import number_text
from raymi.selection.alias_update import AliasUpdate
from raymi.selection.candidate import CLEAN
from raymi.selection.ranking import RankedCandidate, Ranking
from raymi.terminal.console import Table
from raymi.terminal.print_line import print_line, show_table


def print_ranking(console: Console, ranking: Ranking, left_out: Sequence[str] = ()) -> None:
    """Prints models, best first, with 95% intervals, the Pareto front and differences within noise.

    Args:
        console: where it is printed.
        ranking: of the models.
        left_out: names of models that were not measured under the protocol of the ranking.
    """
    num = len(ranking.ranked)
    models = f"{num} model{'s' if num > 1 else ''}"
    print_line(console, f"{models} on {ranking.protocol.text()}, ranked by {ranking.metric}")
    columns = [CLEAN, ranking.metric, *(one.name for one in ranking.constraints)]
    names = list(dict.fromkeys(columns))
    table = Table(box=SIMPLE)
    table.add_column("model", overflow="fold")
    for name in names:
        table.add_column(name, justify="right", no_wrap=True)
    table.add_column("to the best", justify="right", no_wrap=True)
    table.add_column("", overflow="fold")
    for one in ranking.ranked:
        numbers = one.candidate.numbers
        cells = [number_text(numbers[name]) if name in numbers else "-" for name in names]
        distance = "" if one.difference is None else f"{100 * one.difference.value:+.1f}%"
        style = "dim" if one.excluded else None
        table.add_row(one.candidate.name, *cells, distance, _remarks(one), style=style)
    show_table(console, table)
    for model in (one.candidate for one in ranking.ranked):
        if model.doubts:
            print_line(console, f"doubtful: {model.name}: {model.doubts}", "yellow")
    if left_out:
        print_line(console, f"left out, measured otherwise: {', '.join(left_out)}", "yellow")


def print_choice(console: Console, ranking: Ranking, update: AliasUpdate) -> None:
    """Prints the chosen model and the change of its alias."""
    print_line(console, f"chosen: {ranking.chosen.name}  {update.text()}", "bold")
    if ranking.protocol.data.partition("-test")[1]:
        print_line(
            console,
            "chosen on test images, so its test accuracy is biased upwards: for an unbiased one, "
            "evaluate with split=val and select with data=NAME-val",
        )


def _remarks(one: RankedCandidate) -> str:
    if one.excluded:
        return one.excluded
    remarks = ["Pareto"] if one.on_front else []
    if one.difference is not None:
        p_value = one.difference.p_value
        test = "intervals overlap, not paired" if p_value is None else f"paired p={p_value:.2g}"
        if one.difference.within_noise:
            remarks.append(f"within noise ({test})")
        elif p_value is not None:
            remarks.append(test)
    return ", ".join(remarks)
