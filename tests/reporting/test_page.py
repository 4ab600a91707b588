"""The page is self-contained, and shows all names as text."""

from __future__ import annotations

import base64
import json
import re
from dataclasses import replace
from html.parser import HTMLParser

import pytest
from tiny_runs import norm_free_net

from raymi.attacks.catalogue import Threat
from raymi.data import load_splits
from raymi.engine.pgd_evaluation import PGDAttack
from raymi.errors import UserError
from raymi.formatting import percent_text
from raymi.reporting.accuracies import training_accuracies
from raymi.reporting.files import write_report
from raymi.reporting.folder import check_folder
from raymi.reporting.outcomes import attack_images
from raymi.reporting.page import Report, as_html
from raymi.reporting.robustness_curve import RobustnessCurve
from raymi.reporting.robustness_pictures import radius_picture
from raymi.reporting.sections import ReportedRun, TextTable, sections
from raymi.reporting.style import FORMATS, run_styles
from raymi.reporting.table import comparison_tables

EVIL = "<script>alert(1)</script>\"'><img src=x onerror=alert(2)>"
VOID = {"meta", "link", "img", "br"}


class Page(HTMLParser):
    """Elements with their attributes, the text outside of styles, and whether tags match."""

    def __init__(self, html):
        super().__init__()
        self.elements, self.open, self.text, self.sound = [], [], "", True
        self.feed(html)
        self.close()
        self.sound = self.sound and not self.open

    def handle_starttag(self, tag, attrs):
        self.elements.append((tag, dict(attrs)))
        if tag not in VOID:
            self.open.append(tag)

    def handle_endtag(self, tag):
        self.sound = self.sound and bool(self.open) and self.open.pop() == tag

    def handle_data(self, data):
        if self.open[-1:] != ["style"]:
            self.text += data


@pytest.fixture(scope="module")
def measured():
    images = load_splits("digits", image_size=8, limit=60).test
    images = replace(images, class_names=(EVIL, "$%_&", *images.class_names[2:]))
    eps = 0.05
    outcomes = attack_images(
        norm_free_net(10, 8).eval(), images, PGDAttack("linf", eps, eps / 4, 2)
    )
    names = images.class_names
    threat = Threat("linf", eps)
    return RobustnessCurve(EVIL, images.digest, len(images), names, threat, 2, {eps: outcomes})


def report_of(runs, **changed):
    tables = comparison_tables([one.as_row for one in runs])
    content = {"title": "mine", "command": "python -m raymi.report a", "runs": runs}
    return Report(**{**content, "tables": tables, "sections": sections(runs), **changed})


@pytest.fixture(scope="module")
def report(histories, measured):
    runs = [ReportedRun(one, training_accuracies(one), measured) for one in histories]
    return report_of(runs)


@pytest.fixture(scope="module")
def page(report):
    return Page(as_html(report))


def test_every_part_is_there_in_order(page):
    headings = (
        "NAMID (bounded) on digits-test: ", "Comparison", "Learning and robustness curves",
        "Mutual information of natural and adversarial samples", "Accuracy against the radius",
        "Accuracy by class", "Natural and adversarial images", "Runs",
    )  # fmt: skip
    assert page.sound
    places = [page.text.rindex(heading) for heading in headings]
    assert places == sorted(places)


def test_runs_without_probes_are_named(page):
    assert "Without fresh probes (Fig. 4 of the paper): plain, staged; run" in page.text


def test_links_stay_on_the_page(page):
    targets = {attributes["id"] for _, attributes in page.elements if "id" in attributes}
    seen = 0
    for tag, attributes in page.elements:
        assert tag not in ("script", "iframe", "object", "embed", "form", "base", "svg")
        for name, value in attributes.items():
            assert not name.startswith("on")
            assert name != "srcset"
            if name in ("src", "href", "action", "data", "poster"):
                seen += 1
                assert value.startswith("data:") or value[1:] in targets, value
    assert seen > 10
    (policy,) = [
        attributes["content"]
        for tag, attributes in page.elements
        if tag == "meta" and attributes.get("http-equiv") == "Content-Security-Policy"
    ]
    assert policy == "default-src 'none'; img-src data:; style-src 'unsafe-inline'"


def test_pictures_need_no_font_and_no_file(page):
    pictures = [attributes for tag, attributes in page.elements if tag == "img"]
    assert len(pictures) > 5
    for attributes in pictures:
        assert len(attributes["alt"]) > 20
        kind, data = attributes["src"].split(",", 1)
        assert kind == "data:image/svg+xml;base64"
        svg = base64.b64decode(data).decode()
        assert "<text" not in svg
        assert "<script" not in svg
        links = [part.split('"')[1] for part in svg.split("href=")[1:]]
        assert all(link.startswith(("#", "data:")) for link in links)


def test_ids_are_unique(page):
    ids = [attributes["id"] for _, attributes in page.elements if "id" in attributes]
    assert len(ids) == len(set(ids))


def test_names_are_text(histories, measured):
    history = replace(
        histories[0],
        name=EVIL,
        about={"recipe": EVIL, "command": EVIL, "git_commit": EVIL},
        events=[*histories[0].events, {"kind": "warning", "message": EVIL}],
    )
    entries = [replace(one, doubts=EVIL) for one in training_accuracies(history)]
    runs = [ReportedRun(history, entries, measured, (EVIL,)), ReportedRun(histories[1])]
    trials = [TextTable(EVIL, [EVIL], [[EVIL]])]
    page = Page(as_html(report_of(runs, title=EVIL, command=EVIL, trials=trials)))
    assert page.sound
    tags = {tag for tag, _ in page.elements}
    assert "script" not in tags
    assert not any("onerror" in attributes for _, attributes in page.elements)
    assert all(
        attributes["src"].startswith("data:") for tag, attributes in page.elements if tag == "img"
    )
    assert page.text.count(EVIL) > 10


def test_short_runs_have_a_table_in_place_of_curves(histories):
    (training, *_) = sections([ReportedRun(one) for one in histories])
    assert [picture.name for picture in training.pictures] == ["learning-namid"]
    plain, staged = training.tables
    assert plain.header == ("phase", "epoch", "loss", "clean", "robust")
    val = histories[1].phases["classifier"][-1].val
    assert plain.rows[-1][1] == "2"
    assert plain.rows[-1][-1] == percent_text(val["robust_acc"])
    phases = [row[0] for row in staged.rows]
    assert list(dict.fromkeys(phases)) == ["pretraining", "estimators", "classifier"]
    assert "<td>estimators</td>" in as_html(report_of([ReportedRun(histories[2])]))


def test_a_method_has_one_colour_in_all_pictures(histories, measured):
    by_method = {"a": "AT", "b": "NAMID", "c": "AT"}
    styles = run_styles(by_method)
    assert styles["a"]["color"] == styles["c"]["color"] != styles["b"]["color"]
    assert styles["a"]["marker"] != styles["c"]["marker"]
    assert len({one["color"] for one in run_styles(dict.fromkeys("abc", "AT")).values()}) == 3
    figure = radius_picture({"b": measured, "c": measured}, styles).figure
    colours = {box.get_label(): box.lines[0].get_color() for box in figure.axes[0].containers}
    assert colours == {name: styles[name]["color"] for name in "bc"}


def test_a_run_before_its_start_is_shown(histories):
    empty = replace(histories[0], events=[], probe=None)
    run = ReportedRun(empty, notes=("it has no model yet",))
    page = Page(as_html(report_of([run])))
    assert page.sound
    assert "it has no model yet" in page.text
    assert "not finished" in page.text
    assert not [tag for tag, _ in page.elements if tag == "img"]


def test_pictures_do_not_mix_images_or_threats(histories, measured):
    others = replace(measured, digest="other")
    harder = replace(measured, threat=Threat("linf", 0.06), by_radius={0.06: measured.at_threat})
    runs = [
        ReportedRun(replace(histories[0], name=name), curve=one)
        for name, one in (("a", measured), ("b", others), ("c", harder))
    ]
    by_name = {section.name: section for section in sections(runs)}
    together = [picture.alt for picture in by_name["radius"].pictures]
    assert [("a:" in alt, "b:" in alt, "c:" in alt) for alt in together] == [
        (True, False, True),  # of another threat, but of the same images and attack
        (False, True, False),
    ]
    assert len(by_name["classes"].pictures) == 3, "under one threat each"
    names = [picture.name for section in by_name.values() for picture in section.pictures]
    assert len(names) == len(set(names))


def test_many_runs_share_pictures_of_classes_evenly(histories, measured):
    names = [f"run {k:02d}" for k in range(17)]
    runs = [ReportedRun(replace(histories[0], name=name), curve=measured) for name in names]
    (classes,) = (section for section in sections(runs) if section.name == "classes")
    shown = [re.findall(r"run \d\d", picture.alt) for picture in classes.pictures]
    assert shown == [names[:6], names[6:12], names[12:]]
    assert len({picture.name for picture in classes.pictures}) == 3


def test_validation_under_other_attacks_has_separate_pictures(histories):
    easier = histories[1].config.model_copy(deep=True)
    easier = easier.model_copy(
        update={"validation": easier.validation.model_copy(update={"steps": 1})}
    )
    runs = [ReportedRun(one) for one in (histories[0], replace(histories[1], config=easier))]
    assert not [
        picture.name
        for section in sections(runs)
        for picture in section.pictures
        if "together" in picture.name
    ]


def test_a_report_replaces_the_files_of_an_earlier_one(tmp_path, report):
    folder = tmp_path / "report"
    check_folder(folder)
    report = report_of([replace(run, curve=None) for run in report.runs])
    first = write_report(folder, report)
    names = {path.name for path in folder.iterdir()}
    assert {path.name for path in first} == names
    assert first[-1].name == "index.html"
    for picture in report.pictures:
        assert {f"{picture.name}.{kind}" for kind in FORMATS} <= names
    assert {"tables.md", "tables.tex", "report.json"} <= names
    assert json.loads((folder / "report.json").read_text())["runs"] == ["namid", "plain", "staged"]

    (folder / "mine.txt").write_text("kept")
    (folder / "mine").mkdir()
    record = json.loads((folder / "report.json").read_text())
    record["files"] += ["mine", "../elsewhere.png", "not-there.png"]  # as an editor may leave it
    (folder / "report.json").write_text(json.dumps(record))
    check_folder(folder)
    write_report(folder, report_of(report.runs[1:]))
    left = {path.name for path in folder.iterdir()}
    assert "learning-namid.png" not in left
    assert {"mine", "mine.txt", "index.html"} <= left
    assert not [name for name in left if name.startswith("learning-")], "two epochs have a table"


def test_a_folder_with_other_files_is_refused(tmp_path):
    (tmp_path / "thesis.tex").write_text("years")
    with pytest.raises(UserError, match="not a report: set out=FOLDER"):
        check_folder(tmp_path)
    (tmp_path / "empty").mkdir()
    check_folder(tmp_path / "empty")
