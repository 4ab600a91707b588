"""Names that hold markup, escape codes or LaTeX are literal in every file of a report."""

from __future__ import annotations

import json
import re
import xml.etree.ElementTree as ElementTree
from base64 import b64decode
from dataclasses import replace
from pathlib import Path

import pytest
from tiny_runs import norm_free_net

from raymi.attacks.catalogue import Threat
from raymi.data import load_splits
from raymi.engine.pgd_evaluation import PGDAttack
from raymi.reporting.accuracies import ProtocolAccuracies
from raymi.reporting.files import write_report
from raymi.reporting.history import History
from raymi.reporting.outcomes import attack_images
from raymi.reporting.page import Report
from raymi.reporting.robustness_curve import RobustnessCurve
from raymi.reporting.sections import ReportedRun, TextTable, sections
from raymi.reporting.table import comparison_tables
from raymi.selection.candidate import CLEAN, Protocol
from raymi.statistics import with_interval

NAME = "[/][red]\x1b[31m\x1b]8;;http://x\x07|\n\r\u202e--\\end{x}<b>"
SEEN = "[/][red]\\x1b[31m\\x1b]8;;http://x\\x07|\\n\\r\\u202e--\\end{x}<b>"
_RAW = re.compile("[\x00-\x08\x0b-\x1f\x7f-\x9f\u202a-\u202e\u2066-\u2069]")


@pytest.fixture(scope="module")
def report(histories: list[History], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of a report in which every name is hostile."""
    namid, *_ = histories
    images = load_splits("digits", image_size=8, limit=60).test
    names = (NAME, *(f"{k}{NAME}" for k in range(1, len(images.class_names))))
    images = replace(images, class_names=names)
    eps = 0.05
    outcomes = attack_images(
        norm_free_net(10, 8).eval(), images, PGDAttack("linf", eps, eps / 4, 1)
    )
    measured = RobustnessCurve(
        NAME, images.digest, len(images), names, Threat("linf", eps), 1, {eps: outcomes}
    )
    protocol = Protocol(NAME, "0" * 8, 100, "linf_8_255", of_training=False)
    numbers = {CLEAN: with_interval(0.8, 100), NAME: with_interval(0.5, 100)}
    events = [*namid.events, {"kind": "warning", "message": NAME}]
    about = {"command": NAME, "recipe": NAME}
    history = replace(namid, events=events, name=NAME, about=about)
    runs = [ReportedRun(history, [ProtocolAccuracies(protocol, numbers, NAME)], measured, (NAME,))]
    content = Report(
        title=NAME,
        command=NAME,
        runs=runs,
        tables=comparison_tables([one.as_row for one in runs]),
        sections=sections(runs),
        trials=[TextTable(NAME, [NAME], [[NAME]])],
    )
    folder = tmp_path_factory.mktemp("report")
    write_report(folder, content)
    return folder


@pytest.mark.parametrize("file", ["index.html", "tables.md", "tables.tex"])
def test_files_have_no_control_characters(report: Path, file: str) -> None:
    assert not _RAW.search((report / file).read_text())


def test_the_page_shows_the_name_literally(report: Path) -> None:
    html = (report / "index.html").read_text()
    assert html.count(SEEN.replace("<", "&lt;").replace(">", "&gt;")) > 10
    assert "<b>" not in html


def test_pictures_are_well_formed(report: Path) -> None:
    html = (report / "index.html").read_text()
    pictures = re.findall(r"data:image/svg\+xml;base64,([\w+/=]+)", html)
    assert len(pictures) > 3
    for picture in pictures:
        text = b64decode(picture).decode()
        ElementTree.fromstring(text)
        assert not _RAW.search(text)


def test_rows_of_markdown_have_as_many_cells_as_their_header(report: Path) -> None:
    lines = (report / "tables.md").read_text().splitlines()
    rows = [line for line in lines if line.startswith("|")]
    cells = {len(re.findall(r"(?<!\\)\|", row)) for row in rows}
    assert len(rows) > 2
    assert len(cells) == 1


def test_latex_has_no_command_of_a_name(report: Path) -> None:
    tex = (report / "tables.tex").read_text()
    assert r"\end{x}" not in tex
    assert r"--\textbackslash end\{x\}<b>" in tex
    begun, ended = (re.findall(rf"\\{word}{{(\w+)}}", tex) for word in ("begin", "end"))
    assert sorted(begun) == sorted(ended)


def test_json_has_the_name_exactly(report: Path) -> None:
    kept = json.loads((report / "report.json").read_text())
    assert kept["title"] == kept["runs"][0] == NAME
