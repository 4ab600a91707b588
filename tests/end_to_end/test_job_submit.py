"""The same commands under `ray job submit`: they join that cluster, and the job ends as they do."""

from __future__ import annotations

import json
import subprocess
from pathlib import Path

import pytest
from ray_head import RAY, Head
from raymi_command import TIMEOUT, TINY, environment, events

from raymi import train

pytestmark = [pytest.mark.slow, pytest.mark.ray]


def submit(
    head: Head, home: Path, *words: str, module: str = "raymi.train", **metadata: str
) -> subprocess.CompletedProcess:
    """Submits a command with its working folder, and waits for its end."""
    options = ("--address", head.dashboard, "--working-dir", str(home))
    auth = {name: value for name, value in head.env.items() if name.startswith("RAY_AUTH_")}
    return subprocess.run(
        [
            RAY, "job", "submit", *options, "--metadata-json", json.dumps(metadata),
            "--", "python", "-m", module, *words,
        ],
        env=environment(**auth),
        cwd=home,
        capture_output=True,
        text=True,
        timeout=TIMEOUT,
    )  # fmt: skip


def write_model(home: Path) -> None:
    """Writes a user's own network, to be uploaded with the job."""
    (home / "uploaded_model.py").write_text(
        "from torch import nn\n"
        "def net(num_classes, image_size):\n"
        "    return nn.Sequential(nn.Flatten(), nn.Linear(3 * image_size**2, num_classes))\n"
    )


def test_a_job_trains_the_uploaded_model_on_the_cluster(joined_ray: Head, tmp_path: Path) -> None:
    home, runs = tmp_path / "home", tmp_path / "runs"
    home.mkdir()
    write_model(home)
    done = submit(
        joined_ray, home, *TINY, "name=job", f"out={runs}", "tracking.enabled=false",
        "model.name=uploaded_model:net", git_commit="0123abc-dirty",
    )  # fmt: skip
    assert done.returncode == 0, done.stdout + done.stderr
    assert "PGD-4" in done.stdout
    assert events(runs / "job", "finished")
    assert [event["workers"] for event in events(runs / "job", "start")] == [2]
    about = json.loads((runs / "job" / "run.json").read_text())
    assert (about["git_commit"], about["git_dirty"]) == ("0123abc", "true")
    assert about["job"].startswith("raysubmit_")


def test_a_job_fails_as_its_command_does(joined_ray: Head, tmp_path: Path) -> None:
    home = tmp_path / "home"
    home.mkdir()
    done = submit(joined_ray, home, "eps=8", f"out={tmp_path / 'runs'}")
    assert done.returncode != 0
    assert "8/255" in done.stdout + done.stderr
    assert not (tmp_path / "runs").exists()


def test_more_workers_than_the_cluster_has_are_refused(
    joined_ray: Head,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.chdir(tmp_path)
    assert train.main(["scaling.workers=5", "tracking.enabled=false"]) == 2
    expected = "scaling.workers=5 with 1 CPU each, but the nodes of the cluster have places for 2"
    assert expected in capsys.readouterr().err


@pytest.mark.exhaustive
def test_a_job_evaluates_on_all_workers_of_the_cluster(joined_ray: Head, tmp_path: Path) -> None:
    home, runs, results = (tmp_path / name for name in ("home", "runs", "evaluations"))
    home.mkdir()
    done = submit(joined_ray, home, *TINY, "name=job", f"out={runs}", "tracking.enabled=false")
    assert done.returncode == 0, done.stdout + done.stderr
    done = submit(
        joined_ray, home, f"model={runs / 'job'}", "attacks=pgd-3", "samples=40", "checks=0",
        f"results={results}", "tracking.enabled=false", module="raymi.evaluate",
    )  # fmt: skip
    assert done.returncode == 0, done.stdout + done.stderr
    assert "40 images of digits-test-40" in done.stdout
    assert "on 2 workers" in done.stdout
    assert len(list(results.glob("job-best-*/outcomes.parquet"))) == 1
