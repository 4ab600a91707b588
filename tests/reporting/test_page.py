"""The page needs nothing else, and says nothing that users could make it say."""

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
from raymi.reporting.contents import Reported, sections
from raymi.reporting.files import check_folder, write_report
from raymi.reporting.look import FORMATS
from raymi.reporting.measured import Measured
from raymi.reporting.numbers import of_training
from raymi.reporting.outcomes import attacked
from raymi.reporting.page import Contents, Trials, as_html
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
    outcomes = attacked(norm_free_net(10, 8).eval(), images, PGDAttack("linf", eps, eps / 4, 2))
    names = images.class_names
    threat = Threat("linf", eps)
    return Measured(EVIL, images.digest, len(images), names, threat, 2, {eps: outcomes})


def contents_of(runs, **changed):
    tables = comparison_tables([one.as_row for one in runs])
    told = {"title": "mine", "command": "python -m raymi.report a", "runs": runs}
    return Contents(**{**told, "tables": tables, "sections": sections(runs), **changed})


@pytest.fixture(scope="module")
def contents(histories, measured):
    runs = [Reported(one, of_training(one), measured) for one in histories]
    return contents_of(runs)


@pytest.fixture(scope="module")
def page(contents):
    return Page(as_html(contents))


def test_every_part_is_there_in_order(page):
    headings = (
        "Runs", "Comparison", "Learning and robustness curves",
        "Mutual information of natural and adversarial samples", "Accuracy against the radius",
        "Accuracy by class", "Natural and adversarial images",
    )  # fmt: skip
    assert page.sound
    places = [page.text.rindex(heading) for heading in headings]
    assert places == sorted(places)


def test_the_runs_that_fig_4_lacks_are_named(page):
    assert "No fresh probes, which the paper's Fig. 4 needs, of plain, staged:" in page.text


def test_nothing_on_the_page_leads_away_from_it(page):
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


def test_ids_are_there_once(page):
    ids = [attributes["id"] for _, attributes in page.elements if "id" in attributes]
    assert len(ids) == len(set(ids))


def test_whatever_users_write_is_text(histories, measured):
    history = replace(
        histories[0],
        name=EVIL,
        about={"recipe": EVIL, "command": EVIL, "git_commit": EVIL},
        warnings=(EVIL,),
    )
    entries = [replace(one, doubts=EVIL) for one in of_training(history)]
    runs = [Reported(history, entries, measured, (EVIL,)), Reported(histories[1])]
    trials = [Trials(EVIL, [EVIL], [[EVIL]])]
    page = Page(as_html(contents_of(runs, title=EVIL, command=EVIL, trials=trials)))
    assert page.sound
    tags = {tag for tag, _ in page.elements}
    assert "script" not in tags
    assert not any("onerror" in attributes for _, attributes in page.elements)
    assert all(
        attributes["src"].startswith("data:") for tag, attributes in page.elements if tag == "img"
    )
    assert page.text.count(EVIL) > 10


def test_a_run_that_has_not_begun_is_shown_with_what_there_is(histories):
    empty = replace(histories[0], phases={}, start={}, evaluations={}, probe=None, finished=False)
    run = Reported(empty, notes=("it has no model yet",))
    page = Page(as_html(contents_of([run])))
    assert page.sound
    assert "it has no model yet" in page.text
    assert "not finished" in page.text
    assert not [tag for tag, _ in page.elements if tag == "img"]


def test_one_picture_never_mixes_other_images_or_threats(histories, measured):
    others = replace(measured, digest="other")
    harder = replace(measured, threat=Threat("linf", 0.06), by_radius={0.06: measured.at_threat})
    runs = [
        Reported(replace(histories[0], name=name), measured=one)
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
    runs = [Reported(replace(histories[0], name=name), measured=measured) for name in names]
    (classes,) = (section for section in sections(runs) if section.name == "classes")
    shown = [re.findall(r"run \d\d", picture.alt) for picture in classes.pictures]
    assert shown == [names[:6], names[6:12], names[12:]]
    assert len({picture.name for picture in classes.pictures}) == 3


def test_validation_under_other_attacks_is_not_drawn_together(histories):
    easier = histories[1].config.model_copy(deep=True)
    easier = easier.model_copy(
        update={"validation": easier.validation.model_copy(update={"steps": 1})}
    )
    runs = [Reported(one) for one in (histories[0], replace(histories[1], config=easier))]
    assert not [
        picture.name
        for section in sections(runs)
        for picture in section.pictures
        if "together" in picture.name
    ]


def test_all_files_are_written_and_those_of_the_report_before_are_gone(tmp_path, contents):
    folder = tmp_path / "report"
    check_folder(folder)
    contents = contents_of([replace(run, measured=None) for run in contents.runs])
    first = write_report(folder, contents)
    names = {path.name for path in folder.iterdir()}
    assert {path.name for path in first} == names
    assert first[-1].name == "index.html"
    for picture in contents.pictures:
        assert {f"{picture.name}.{kind}" for kind in FORMATS} <= names
    assert {"tables.md", "tables.tex", "report.json"} <= names
    assert json.loads((folder / "report.json").read_text())["runs"] == ["namid", "plain", "staged"]

    (folder / "mine.txt").write_text("kept")
    (folder / "mine").mkdir()
    record = json.loads((folder / "report.json").read_text())
    record["files"] += ["mine", "../elsewhere.png", "not-there.png"]  # as an editor may leave it
    (folder / "report.json").write_text(json.dumps(record))
    check_folder(folder)
    write_report(folder, contents_of(contents.runs[1:2]))
    left = {path.name for path in folder.iterdir()}
    assert "learning-namid.png" not in left
    assert {"mine", "mine.txt", "learning-plain.png", "index.html"} <= left


def test_a_folder_with_other_files_is_refused(tmp_path):
    (tmp_path / "thesis.tex").write_text("years")
    with pytest.raises(UserError, match="is no report: give out=FOLDER"):
        check_folder(tmp_path)
    (tmp_path / "empty").mkdir()
    check_folder(tmp_path / "empty")
