"""The ranking of models, and why one of them was chosen."""

from __future__ import annotations

from rich.box import SIMPLE
from rich.console import Console

from raymi.formatting import number_text
from raymi.selection.candidate import CLEAN, Protocol
from raymi.selection.ranking import Place, Ranking
from raymi.terminal.console import Table
from raymi.terminal.print_line import print_line, show_table


def print_ranking(console: Console, ranking: Ranking) -> None:
    """The models, best first, with 95% intervals; the Pareto front; what is within noise."""
    num = len(ranking.places)
    models = f"{num} model{'s' if num > 1 else ''}"
    print_line(
        console, f"{models} on {question_text(ranking.protocol)}, ranked by {ranking.metric}"
    )
    columns = [CLEAN, ranking.metric, *(one.name for one in ranking.constraints)]
    names = list(dict.fromkeys(columns))
    table = Table(box=SIMPLE)
    table.add_column("model", overflow="fold")
    for name in names:
        table.add_column(name, justify="right", no_wrap=True)
    table.add_column("to the best", justify="right", no_wrap=True)
    table.add_column("", overflow="fold")
    for place in ranking.places:
        numbers = place.candidate.numbers
        cells = [number_text(numbers[name]) if name in numbers else "-" for name in names]
        style = "dim" if place.excluded else None
        difference = place.difference
        distance = "" if difference is None else f"{100 * difference.value:+.1f}%"
        table.add_row(place.candidate.name, *cells, distance, _remarks(place), style=style)
    show_table(console, table)
    for place in ranking.places:
        if place.candidate.doubts:
            print_line(
                console, f"doubtful: {place.candidate.name}: {place.candidate.doubts}", "yellow"
            )
    if ranking.eligible:
        _print_front(console, ranking)
        _print_noise(console, ranking)


def question_text(protocol: Protocol) -> str:
    """Which images and threat, in words."""
    return f"{protocol.data} ({protocol.num} images), {protocol.threat}"


def _remarks(place: Place) -> str:
    if place.excluded:
        return place.excluded
    remarks = ["Pareto"] if place.on_front else []
    if place.difference is not None and place.difference.within_noise:
        remarks.append("within noise")
    if place.difference is not None and place.difference.p_value is not None:
        remarks.append(f"p={place.difference.p_value:.2g}")
    return ", ".join(remarks)


def _print_front(console: Console, ranking: Ranking) -> None:
    print_line(console, f"Pareto front of {CLEAN} and {ranking.metric}, with 95% intervals:")
    for place in ranking.eligible:
        if place.on_front:
            clean, robust = place.candidate.numbers[CLEAN], ranking.number(place.candidate)
            text = f"{number_text(clean)}  {number_text(robust)}"
            print_line(console, f"  {text}  {place.candidate.name}")


def _print_noise(console: Console, ranking: Ranking) -> None:
    best, *others = ranking.eligible
    near = [one for one in others if one.difference and one.difference.within_noise]
    if not others:
        return
    if not near:
        print_line(console, f"{best.candidate.name} is ahead of all others by more than noise")
        return
    said = []
    for place in near:
        p_value = place.difference.p_value if place.difference else None
        how = "intervals overlap, not paired" if p_value is None else f"paired p={p_value:.2g}"
        said.append(f"{place.candidate.name} ({how})")
    print_line(console, f"within noise of {best.candidate.name}: {', '.join(said)}")
