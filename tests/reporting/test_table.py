"""Tables of runs in the paper's layout."""

from __future__ import annotations

import json
import os
import re

import pytest

from raymi.recipes import build_config
from raymi.reporting.accuracies import (
    ProtocolAccuracies,
    evaluation_accuracies,
    merge_accuracies,
    method_name,
    training_accuracies,
)
from raymi.reporting.history import read_history
from raymi.reporting.table import (
    RunAccuracies,
    as_latex,
    as_markdown,
    attack_text,
    comparison_tables,
)
from raymi.selection.candidate import CLEAN, Protocol
from raymi.statistics import Number, with_interval

TEST = Protocol("cifar10-test", "a" * 32, 1000, "linf_8_255", of_training=False)
DIGEST = "f" * 64


def entry(protocol=TEST, doubts="", **accuracies):
    numbers = {name.replace("_", "-"): with_interval(a, 1000) for name, a in accuracies.items()}
    return ProtocolAccuracies(protocol, {CLEAN: with_interval(0.8, 1000), **numbers}, doubts)


def run(name, *entries):
    return RunAccuracies(name, "AT", 0, entries)


def write_report(folder, num=1000, digest=DIGEST, data="cifar10-test", eps=8 / 255, **accuracies):
    """Writes the fields of a report of `raymi.evaluate` that are read."""
    folder.mkdir(parents=True)
    results = [
        {"name": name, "accuracy": a, "low95": a - 0.01, "high95": a + 0.01}
        for name, a in {CLEAN: 0.8, **accuracies}.items()
    ]
    content = {
        "data": data,
        "num": num,
        "question": {"model": digest, "images": "a" * 64, "threat": {"norm": "linf", "eps": eps}},
        "results": results,
        "false_robustness": [{"check": "vanishing", "suspicious": True}],
    }
    (folder / "report.json").write_text(json.dumps(content))


@pytest.mark.parametrize(
    "changed",
    [
        {"data": "cifar10-val"},
        {"digest": "b" * 32},
        {"num": 999},
        {"threat": "linf_4_255"},
        {"of_training": True},
    ],
)
def test_protocols_have_separate_tables(changed):
    other = TEST._replace(**changed)
    tables = comparison_tables([run("a", entry(pgd_40=0.5)), run("b", entry(other, pgd_40=0.4))])
    assert [[row.run for row in table.rows] for table in tables] == [["a"], ["b"]]
    assert {table.protocol for table in tables} == {TEST, other}
    assert len({table.caption for table in tables}) == 2, "captions differ"


def test_columns_are_in_the_order_of_the_paper():
    runs = [
        run("a", entry(ti_dim=0.6, autoattack=0.4, pgd_40=0.5, pgd_20=0.51, fwa_40=0.2)),
        run("b", entry(square=0.6, pgd_40=0.5)),
    ]
    (table,) = comparison_tables(runs)
    expected = ("Clean", "PGD-20", "PGD-40", "AutoAttack", "FWA-40", "TI-DIM", "square")
    assert table.header[3:] == expected
    assert [cell is None for cell in table.rows[1].cells] == [False, True, False] + 3 * [True] + [
        False
    ]


def test_the_best_number_is_bold_if_it_is_best_beyond_noise():
    tables = comparison_tables([run("a", entry(pgd_40=0.50)), run("b", entry(pgd_40=0.52))])
    assert not any(cell.best for row in tables[0].rows for cell in row.cells)
    tables = comparison_tables([run("a", entry(pgd_40=0.50)), run("b", entry(pgd_40=0.60))])
    best = {row.run: [cell.best for cell in row.cells] for row in tables[0].rows}
    assert best == {"a": [False, False], "b": [False, True]}
    (alone,) = comparison_tables([run("a", entry(pgd_40=0.5))])
    assert not any(cell.best for cell in alone.rows[0].cells)


def test_numbers_of_a_run_equal_those_of_its_chosen_model(namid, plain):
    for folder in (namid, plain):
        history = read_history(folder)
        (found,) = training_accuracies(history)
        event = history.evaluations[history.chosen]
        assert event["chosen"]
        assert found.numbers[CLEAN].accuracy == event["clean"]
        assert found.numbers["pgd-2-of-training"].accuracy == event["robust"]
        assert found.protocol.of_training
        assert found.protocol.num == 40
        assert history.start["data"]["digests"]["test"].startswith(found.protocol.digest)


def test_evaluations_of_the_same_weights_are_read(tmp_path):
    write_report(tmp_path / "a" / "1", autoattack=0.4)
    write_report(tmp_path / "a" / "2", digest="0" * 64, ddn=0.9)
    write_report(tmp_path / "b" / "3", num=40, **{"pgd-20@2eps": 0.1})
    (tmp_path / "b" / "damaged").mkdir()
    (tmp_path / "b" / "damaged" / "report.json").write_text("{")
    found = evaluation_accuracies([tmp_path / "a", tmp_path / "b", tmp_path / "none"], DIGEST)
    assert {one.protocol.num: set(one.numbers) for one in found} == {
        1000: {CLEAN, "autoattack"},
        40: {CLEAN, "pgd-20_2eps"},
    }
    assert found[0].protocol == TEST._replace(num=found[0].protocol.num)
    assert found[0].doubts == "vanishing"


def test_the_newer_evaluation_of_a_protocol_counts(tmp_path):
    for name, accuracy, when in (("old", 0.4, 1), ("new", 0.3, 2)):
        write_report(tmp_path / name, autoattack=accuracy)
        os.utime(tmp_path / name / "report.json", (when, when))
    write_report(tmp_path / "older", **{"pgd-40": 0.5})
    os.utime(tmp_path / "older" / "report.json", (0, 0))
    (found,) = evaluation_accuracies([tmp_path], DIGEST)
    assert found.numbers["autoattack"].accuracy == 0.3
    assert found.numbers["pgd-40"].accuracy == 0.5


def test_the_first_number_counts_and_doubts_are_joined():
    (found,) = merge_accuracies(
        [entry(doubts="a", pgd_40=0.5), entry(doubts="b", pgd_40=0.4, ddn=0.3)]
    )
    assert found.numbers["pgd-40"].accuracy == 0.5
    assert found.numbers["ddn"].accuracy == 0.3
    assert found.doubts == "a; b"


@pytest.mark.parametrize(
    ("recipe", "name"),
    [
        ("quickstart", "NAMID (bounded)"),
        ("quickstart-at", "AT"),
        ("quickstart-trades", "TRADES"),
        ("quickstart-mart", "MART"),
        ("quickstart-wmim", "WMIM"),
        ("quickstart-random", "AT + random gradient"),
        ("quickstart-teacher", "AT + teacher"),
        ("quickstart-adr", "ADR"),
        ("quickstart-js", "AT + JS"),
        ("quickstart-mi-off", "AT"),
        ("quickstart-at-clean-forward", "AT + unused clean forward"),
        ("quickstart-namid-t", "NAMID_T (bounded)"),
        ("quickstart-no-natural-mi", "NAMID (bounded, no natural MI)"),
        ("paper-cifar10-linf", "NAMID (paper)"),
        ("paper-cifar10-linf-namid-m", "NAMID_M (paper)"),
        ("paper-cifar10-linf-bounded", "NAMID (bounded)"),
    ],
)
def test_methods_are_named_as_in_the_paper(recipe, name):
    assert method_name(build_config(recipe)) == name


def test_attacks_are_named_as_in_the_paper():
    names = ("pgd-40", "autoattack", "fwa-40", "ti-dim", "cw", "ddn", "pgd-2-of-training")
    texts = ["PGD-40", "AutoAttack", "FWA-40", "TI-DIM", "CW", "DDN", "PGD-2"]
    assert list(map(attack_text, names)) == texts
    assert attack_text("pgd-40-of-training-alpha-0.01") == "PGD-40 (alpha 0.01)"


def test_latex_has_a_cell_for_each_column_and_escapes_names():
    runs = [
        run("50%_of $x & y#{\\^~", entry(doubts="a_b", pgd_40=0.7)),
        run("b", entry(pgd_40=0.5, ddn=0.3)),
    ]
    text = as_latex(comparison_tables(runs))
    (columns,) = re.findall(r"\\begin\{tabular\}\{(\w+)\}", text)
    rows = [line for line in text.splitlines() if line.endswith(r"\\")]
    assert len(rows) == 3
    for row in rows:
        assert len(re.findall(r"(?<!\\)&", row)) == len(columns) - 1
    escaped = r"50\%\_of \$x \& y\#\{\textbackslash \textasciicircum \textasciitilde "
    assert escaped in rows[1]
    assert rf"† {escaped}: signs of false robustness: a\_b" in text
    low, high = with_interval(0.7, 1000)[1:]
    assert rf"\textbf{{70.0 ({100 * low:.1f}-{100 * high:.1f})}}" in rows[1]
    assert text.count(r"\textbf{") == 1


def test_markdown_has_as_many_cells_in_each_row():
    runs = [run("a|b", entry(pgd_40=0.7)), run("b", entry(pgd_40=0.5))]
    lines = [one for one in as_markdown(comparison_tables(runs)).splitlines() if one[:1] == "|"]
    assert len(lines) == 4
    assert {len(re.findall(r"(?<!\\)\|", line)) for line in lines} == {6}
    low, high = with_interval(0.7, 1000)[1:]
    assert f"**70.0 ({100 * low:.1f}-{100 * high:.1f})**" in lines[2]


def test_json_has_fractions():
    (table,) = comparison_tables([run("a", entry(pgd_40=0.5))])
    content = json.loads(json.dumps(table.as_json()))
    assert content["rows"][0]["accuracies"]["pgd-40"] == Number(*with_interval(0.5, 1000))._asdict()
    assert content["num"] == 1000
