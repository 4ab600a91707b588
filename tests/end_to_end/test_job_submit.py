"""The same commands under `ray job submit`: they join that cluster, and the job ends as they do."""

from __future__ import annotations

import json
import re
import subprocess
import time
from collections.abc import Mapping
from pathlib import Path

import pytest
from mlflow import MlflowClient
from ray_head import RAY, Head
from raymi_command import (
    SLOW_MODEL,
    TIMEOUT,
    TINY,
    environment,
    events,
    wait_for,
    write_slow_model,
)

from raymi import train
from raymi.config import ScalingConfig
from raymi.ray_backend.free_slots import print_missing_slots
from raymi.ray_backend.session import ray_session

pytestmark = [pytest.mark.slow, pytest.mark.ray]


def submit(
    head: Head,
    home: Path,
    *words: str,
    module: str = "raymi.train",
    wait: bool = True,
    env: Mapping[str, str] | None = None,
    **metadata: str,
) -> subprocess.CompletedProcess[str]:
    """Submits a command with its working folder, and waits for its end if `wait`."""
    options = ["--working-dir", str(home), "--metadata-json", json.dumps(metadata)]
    options += ["--runtime-env-json", json.dumps({"env_vars": dict(env or {})})]
    if not wait:
        options.append("--no-wait")
    return ray_job(head, "submit", *options, "--", "python", "-m", module, *words, cwd=home)


def ray_job(
    head: Head, command: str, *words: str, cwd: Path | None = None
) -> subprocess.CompletedProcess[str]:
    """Runs `ray job COMMAND` against a head."""
    auth = {name: value for name, value in head.env.items() if name.startswith("RAY_AUTH_")}
    return subprocess.run(
        [RAY, "job", command, "--address", head.dashboard, *words],
        env=environment(**auth),
        cwd=cwd,
        capture_output=True,
        text=True,
        timeout=TIMEOUT,
    )


def statuses(store: str) -> list[str]:
    """Returns the status of each run of the default experiment in a store of MLflow."""
    client = MlflowClient(store)
    experiment = client.get_experiment_by_name("raymi")
    assert experiment is not None
    return [run.info.status for run in client.search_runs([experiment.experiment_id])]


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
    expected = "scaling.workers=5 with 1 CPU each, but the nodes of the cluster have slots for 2"
    assert expected in capsys.readouterr().err


def test_a_run_prints_the_slots_that_it_waits_for(joined_ray: Head) -> None:
    said: list[str] = []
    with ray_session(ScalingConfig(workers=2), print_line=said.append) as resources:
        import ray

        @ray.remote(num_cpus=1)
        class Job:
            def is_there(self) -> bool:
                return True

        assert said == []
        assert resources.slots == 2
        other = Job.remote()
        assert ray.get(other.is_there.remote(), timeout=TIMEOUT)
        deadline = time.monotonic() + TIMEOUT
        while not said:  # Ray's view of what is free is some seconds old
            assert time.monotonic() < deadline
            print_missing_slots(ScalingConfig(workers=2), {"CPU": 1}, said.append)
            time.sleep(0.1)
        ray.kill(other)
    assert said == [
        "waiting for slots: scaling.workers=2 with 1 CPU each, the nodes have slots for 2, 1 of "
        "them free; the run starts when other jobs end"
    ]


@pytest.mark.exhaustive
def test_a_stopped_job_ends_with_a_checkpoint_and_a_killed_run_and_continues(
    joined_ray: Head, tmp_path: Path
) -> None:
    """`ray job stop` kills a job after RAY_JOB_STOP_WAIT_TIME_S, 3 s by default."""
    home, runs = tmp_path / "home", tmp_path / "runs"
    home.mkdir()
    release, run = write_slow_model(home), runs / "stopped"
    store = f"sqlite:///{tmp_path / 'mlflow.db'}"
    words = (*TINY, SLOW_MODEL, "name=stopped", f"out={runs}")
    job = submit(joined_ray, home, *words, wait=False, env={"MLFLOW_TRACKING_URI": store})
    submitted = re.search(r"raysubmit_\w+", job.stdout)
    assert submitted is not None, job.stdout + job.stderr
    wait_for(lambda: events(run, "epoch"), joined_ray.process)
    stop = ray_job(joined_ray, "stop", submitted[0])
    assert stop.returncode == 0, stop.stdout + stop.stderr
    assert len(events(run, "stopped")) == 1, "with a checkpoint"
    assert statuses(store) == ["KILLED"]
    logs = ray_job(joined_ray, "logs", submitted[0]).stdout
    assert "stopped by SIGTERM; to continue" in logs

    release.touch()
    words = ("resume=stopped", f"out={runs}")
    done = submit(joined_ray, home, *words, env={"MLFLOW_TRACKING_URI": store})
    assert done.returncode == 0, done.stdout + done.stderr
    assert events(run, "finished")
    assert statuses(store) == ["FINISHED"], "the same run in MLflow is continued"


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
