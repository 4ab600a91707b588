"""The report of real runs, and its page in a real browser."""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pytest
import raymi_command
import tiny_runs
from PIL import Image

from raymi.report import main
from raymi.runs.run_folder import RunFolder

pytestmark = pytest.mark.slow

CHROMIUM = next(filter(None, map(shutil.which, ("chromium", "google-chrome", "chrome"))), None)
in_a_browser = pytest.mark.skipif(CHROMIUM is None, reason="no chromium on PATH")

NAME = "a<script>alert(1)<b>&$x^_1" + 40 * "y"
PHONE, DESK = 400, 1280
_OF_THE_BROWSER = "not an origin"  # initiator of what Chromium asks for by itself


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Folder with a run of an awkward name, a staged run, a stopped run, and their report."""
    home = tmp_path_factory.mktemp("report")
    (home / "output.txt").write_text("")
    probes = {"probe.steps": 3, "probe.batch": 32}
    runs = {NAME: probes, "staged": {"mi.schedule": "staged", **probes}, "stopped": {}}
    for name, settings in runs.items():
        folder = RunFolder(home / "runs" / name)
        folder.path.mkdir(parents=True)
        folder.write_config(tiny_runs.tiny_config(settings))
        folder.write_about({"recipe": "tiny", "command": f"python -m raymi.train name='{name}'"})
        if name == "stopped":
            context = tiny_runs.StoppingContext(folder.stop_file, 6)
            tiny_runs.train(tiny_runs.tiny_config(settings), context, folder)
        else:
            tiny_runs.tiny_run(0, 1, folder.path, settings, [])
    (home / "output.txt").write_text(made(home, NAME, "staged", "stopped", "out=all", "steps=3"))
    return home


def made(home: Path, *words: str) -> str:
    """Makes a report; returns the output of the command."""
    process = raymi_command.start(home, *words, module="raymi.report")
    out, err = process.communicate(timeout=raymi_command.TIMEOUT)
    assert process.returncode == 0, out + err
    assert err == ""
    return out


class Visit(NamedTuple):
    """A page in a browser: its DOM, console messages, and requests."""

    dom: str
    console: list[str]
    requests: list[str]


def visit(page: Path, folder: Path, width: int = DESK, *options: str) -> Visit:
    log = folder / "net.json"
    done = subprocess.run(
        [
            str(CHROMIUM), "--headless=new", "--disable-gpu", "--no-first-run", "--hide-scrollbars",
            *(["--no-sandbox"] if os.geteuid() == 0 else []),
            "--host-resolver-rules=MAP * ~NOTFOUND", f"--user-data-dir={folder / 'profile'}",
            "--enable-logging=stderr", f"--log-net-log={log}", f"--window-size={width},4000",
            *(options or ["--dump-dom"]), page.as_uri(),
        ],
        capture_output=True, text=True, timeout=300, errors="replace", check=True,
    )  # fmt: skip
    net: dict[str, Any] = json.loads(log.read_text())
    started = net["constants"]["logEventTypes"]["URL_REQUEST_START_JOB"]
    asked = [one.get("params", {}) for one in net["events"] if one["type"] == started]
    requests = [
        one["url"] for one in asked if one.get("initiator", _OF_THE_BROWSER) != _OF_THE_BROWSER
    ]
    console = [line for line in done.stderr.splitlines() if "CONSOLE" in line]
    return Visit(done.stdout, console, requests)


def test_the_command_prints_the_page_and_missing_parts(home):
    lines = (home / "output.txt").read_text().splitlines()
    assert lines[0].startswith("stopped: not finished")
    assert lines[-1] == f"report  {home / 'all' / 'index.html'}"
    assert len(lines) == 2, "the runs are not in MLflow"


def test_the_report_has_the_numbers_of_the_runs(home):
    report = json.loads((home / "all" / "report.json").read_text())
    (table,) = report["tables"]
    rows = {row["run"]: row["accuracies"] for row in table["rows"]}
    for name in (NAME, "staged"):
        events = raymi_command.events(home / "runs" / name, "evaluation")
        (event,) = [one for one in events if one["chosen"]]
        assert rows[name]["clean"]["accuracy"] == event["clean"]
        assert rows[name]["pgd-2-of-training"]["accuracy"] == event["robust"]
    assert "stopped" not in rows


@pytest.mark.exhaustive
def test_a_second_report_does_not_attack(home):
    kept = {path: path.stat().st_mtime_ns for path in home.glob("runs/*/report/*")}
    assert len(kept) == 2 * 7
    made(home, NAME, "staged", "steps=3", "out=again")
    assert {path: path.stat().st_mtime_ns for path in home.glob("runs/*/report/*")} == kept
    first, second = ((home / out / "accuracy-eps.png").read_bytes() for out in ("all", "again"))
    assert first == second


def test_invalid_input_exits_with_2_and_help_lists_all_options(home, monkeypatch, capsys):
    monkeypatch.chdir(home)
    assert main(["stage", "smaples=3"]) == 2
    err = capsys.readouterr().err
    assert "did you mean samples" in err
    assert "did you mean staged" in err
    assert main(["--help"]) == 0
    text = capsys.readouterr().out
    for word in ("usage: python -m raymi.report RUN", "samples", "eps", "tracking.enabled"):
        assert word in text


@in_a_browser
def test_the_browser_reports_errors_and_requests(tmp_path):
    page = tmp_path / "bad.html"
    page.write_text("<img src='http://127.0.0.1:9/a.png'><script>console.error('boo')</script>")
    seen = visit(page, tmp_path)
    assert any("boo" in line for line in seen.console)
    assert seen.requests == ["http://127.0.0.1:9/a.png"]


@in_a_browser
def test_the_page_renders_without_console_messages_and_without_network(home, tmp_path):
    seen = visit(home / "all" / "index.html", tmp_path)
    assert seen.console == []
    assert seen.requests == []
    headings = re.findall(r"<h2>(.*?)</h2>", seen.dom)
    assert headings == [
        "Comparison", "Learning and robustness curves",
        "Mutual information of natural and adversarial samples", "Accuracy against the radius",
        "Accuracy by class", "Natural and adversarial images", "Runs",
    ]  # fmt: skip
    assert "a&lt;script&gt;alert(1)" in seen.dom
    assert "<script" not in seen.dom


@in_a_browser
@pytest.mark.parametrize("width", [PHONE, DESK])
def test_the_page_fits_its_window_and_shows_pictures(home, tmp_path, width):
    shot = tmp_path / "shot.png"
    visit(home / "all" / "index.html", tmp_path, width, f"--screenshot={shot}")
    pixels = np.asarray(Image.open(shot).convert("RGB")).astype(int)
    assert pixels.shape[1] == width
    assert pixels[:, -8:].min() == 255, "nothing crosses the margin"
    assert pixels[:, :8].min() == 255
    coloured = pixels.max(axis=2) - pixels.min(axis=2) > 60
    assert coloured[1000:].mean() > 0.002, "curves are drawn"


@in_a_browser
def test_the_page_can_be_printed(home, tmp_path):
    pdf = tmp_path / "page.pdf"
    visit(home / "all" / "index.html", tmp_path, DESK, f"--print-to-pdf={pdf}")
    assert pdf.read_bytes().startswith(b"%PDF")
    assert len(re.findall(rb"/Type\s*/Page\b", pdf.read_bytes())) > 3
