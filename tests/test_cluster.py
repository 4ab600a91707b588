"""The cluster/ folder: descriptions that Ray takes, a closed MLflow server, a page that holds."""

from __future__ import annotations

import configparser
import os
import re
import shlex
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import psutil
import pytest
import requests
import yaml
from jsonschema import ValidationError
from ports import free_ports
from ray.autoscaler._private.util import prepare_config, validate_config
from ray.dashboard.utils import get_address_for_submission_client
from raymi_command import environment

import raymi.commands.evaluate.options
import raymi.commands.select.options
from raymi import train
from raymi.commands.train.options import CHANGEABLE
from raymi.commands.tune.options import asked_for
from raymi.overrides import flatten, split_words

ROOT = Path(__file__).parents[1]
FOLDER = ROOT / "cluster"
CLUSTERS = sorted(FOLDER.glob("*.yaml"))
SCRIPTS = sorted(FOLDER.glob("*.sh"))


def _read(path: Path) -> dict[str, Any]:
    return yaml.safe_load(path.read_text())


def _commands(cluster: dict[str, Any], where: str) -> str:
    """The commands of a node's set-up or start, one a line."""
    return "\n".join(cluster.get(where, ()))


def _jobs() -> list[list[str]]:
    """The commands of raymi on the page, each as its words."""
    lines = (FOLDER / "README.md").read_text().splitlines()
    submitted = [shlex.split(line) for line in lines if line.startswith("ray job submit ")]
    return [words[words.index("--") + 1 :] for words in submitted]


@pytest.fixture(params=CLUSTERS, ids=lambda path: path.name)
def cluster(request: pytest.FixtureRequest) -> dict[str, Any]:
    return _read(request.param)


def test_both_kinds_of_cluster_are_there():
    assert [path.name for path in CLUSTERS] == ["aws.yaml", "hosts.yaml"]


def test_ray_takes_the_description_of_a_cluster(cluster: dict[str, Any]):
    validate_config(prepare_config(cluster))


def test_ray_refuses_a_key_that_it_does_not_know(cluster: dict[str, Any]):
    with pytest.raises(ValidationError, match="idle_minutes"):
        validate_config(prepare_config({**cluster, "idle_minutes": 5}))


def test_nothing_trains_on_the_head_and_gpus_are_on_the_workers():
    aws, hosts = (_read(FOLDER / name) for name in ("aws.yaml", "hosts.yaml"))
    types = aws["available_node_types"]
    head = types.pop(aws["head_node_type"])
    assert head["resources"] == {"CPU": 0}
    assert head["max_workers"] == 0
    assert not head["node_config"]["InstanceType"].startswith(("g", "p"))
    assert [node["node_config"]["InstanceType"][0] for node in types.values()] == ["g"]
    assert "--num-cpus=0 --num-gpus=0" in _commands(hosts, "head_start_ray_commands")
    assert hosts["provider"]["head_ip"] not in hosts["provider"]["worker_ips"]


def test_what_nodes_get_is_in_the_checkout(cluster: dict[str, Any]):
    mounts = cluster["file_mounts"]
    own = {path for path in mounts.values() if not path.startswith("~")}
    assert own == {"pyproject.toml", "cluster/mlflow-server.sh"}
    assert all((ROOT / path).is_file() for path in own)
    used = re.findall(r"~/raymi/[\w.-]+\.\w+", yaml.safe_dump(cluster))
    assert {path for path in used if "venv" not in path} <= set(mounts)


def test_ray_wants_a_token_and_its_dashboard_is_not_on_the_network(cluster: dict[str, Any]):
    head, workers = (_commands(cluster, f"{who}_start_ray_commands") for who in ("head", "worker"))
    assert "RAY_AUTH_MODE=token" in head
    assert "RAY_AUTH_MODE=token" in workers
    assert "RAY_JOB_STOP_WAIT_TIME_S=60" in head, "or `ray job stop` kills after 3 s"
    assert re.findall(r"--dashboard-host=(\S+)", head) == ["127.0.0.1"]
    assert cluster["file_mounts"]["~/.ray/auth_token"] == "~/.ray/auth_token"


def test_no_port_is_open_to_the_world():
    aws = _read(FOLDER / "aws.yaml")
    # Ray opens SSH to everyone in a group that it makes: where it is given one, it makes none.
    for node in aws["available_node_types"].values():
        assert node["node_config"]["SecurityGroupIds"] == ["sg-EDIT"]
    assert "security_group" not in aws["provider"]
    for path in (*CLUSTERS, *SCRIPTS):
        assert not re.search(r"0\.0\.0\.0|::/0|--host[= ](?!127\.0\.0\.1)", path.read_text()), path


SECRET = re.compile(
    r"""(AKIA|ASIA)[0-9A-Z]{16}|-----BEGIN|[0-9a-f]{32}
    |(password|secret\w*|token)\ *=\ *['"]?(?!\$|%s|\.\.\.)\w""",
    re.IGNORECASE | re.VERBOSE,
)


@pytest.mark.parametrize(
    "line", ["mlflow_tracking_password = hunter2", "MLFLOW_FLASK_SERVER_SECRET_KEY='abc'"]
)
def test_a_secret_would_be_seen(line: str):
    assert SECRET.search(line)


@pytest.mark.parametrize("path", sorted(FOLDER.iterdir()), ids=lambda path: path.name)
def test_no_secret_is_in_the_folder_and_no_environment_is_printed(path: Path):
    text = path.read_text()
    assert SECRET.findall(text) == []
    assert not re.search(r"(^|[;&|] *)(set -x|env|printenv|export -p)\b", text, re.MULTILINE)


@pytest.mark.parametrize("script", SCRIPTS, ids=lambda path: path.name)
def test_scripts_are_those_of_a_shell(script: Path):
    subprocess.run(["bash", "-n", script], check=True)


def test_commands_of_nodes_are_those_of_a_shell(cluster: dict[str, Any]):
    lists = [value for key, value in cluster.items() if key.endswith("_commands")]
    commands = "\n".join(f"({command})" for each in lists for command in each)  # as Ray does
    subprocess.run(["bash", "-n"], input=commands, text=True, check=True)


def _check_train(words: list[str]) -> None:
    if any(word.startswith("resume=") for word in words):
        parsed = split_words(words, {"resume": ()})
        assert parsed.problems == []
        assert set(flatten(parsed.settings)) <= {*CHANGEABLE, "out"}
    else:
        assert train.main([*words, "--dry-run"]) == 0


def _check_tune(words: list[str]) -> None:
    if any(word.startswith("resume=") for word in words):
        parsed = split_words(words, {"resume": ()})
        assert (parsed.problems, set(flatten(parsed.settings))) == ([], {"out"})
    else:
        asked_for(words)


CHECKS: dict[str, Callable[[list[str]], object]] = {
    "raymi.train": _check_train,
    "raymi.tune": _check_tune,
    "raymi.evaluate": raymi.commands.evaluate.options.requested,
    "raymi.select": raymi.commands.select.options.requested,
}


def test_the_page_shows_all_commands_that_a_cluster_is_for():
    assert {words[2] for words in _jobs()} == set(CHECKS)
    assert "clean>=0.80" in next(words for words in _jobs() if words[2] == "raymi.select")


@pytest.mark.parametrize("words", _jobs(), ids=" ".join)
def test_commands_of_the_page_are_understood(
    words: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    assert words[:2] == ["python", "-m"]
    monkeypatch.setenv("RAY_ADDRESS", "auto")  # as in a job: its cluster has the GPUs and the data
    CHECKS[words[2]]([word.replace("/shared", str(tmp_path)) for word in words[3:]])


def test_jobs_of_the_page_go_through_its_tunnel(monkeypatch: pytest.MonkeyPatch):
    # Without an address Ray looks for a cluster on the machine that submits, and finds none.
    monkeypatch.delenv("RAY_ADDRESS", raising=False)
    page = (FOLDER / "README.md").read_text()
    for name, value in re.findall(r"^export (\w+)=(\S+)", page, re.MULTILINE):
        monkeypatch.setenv(name, value)
    assert os.environ["RAY_AUTH_MODE"] == "token"
    assert get_address_for_submission_client(None) == "http://localhost:8265"


@dataclass(frozen=True)
class Server:
    """A server of MLflow as `mlflow-server.sh` starts it."""

    home: Path
    address: str
    log: Path

    @property
    def password(self) -> str:
        parser = configparser.ConfigParser()
        parser.read(self.home / ".mlflow" / "credentials")
        return parser["mlflow"]["mlflow_tracking_password"]

    def search(self, password: str | None, **headers: str) -> int:
        """The HTTP status of a search for experiments."""
        return requests.get(
            f"{self.address}/api/2.0/mlflow/experiments/search?max_results=1",
            auth=None if password is None else ("admin", password),
            headers=headers,
            timeout=300,
        ).status_code


def _command(home: Path, port: int) -> dict[str, Any]:
    path = os.pathsep.join([str(Path(sys.executable).parent), os.environ["PATH"]])
    return {
        "args": ["bash", FOLDER / "mlflow-server.sh", home / "mlflow", str(port)],
        "env": environment(HOME=str(home), PATH=path),
        "stdin": subprocess.DEVNULL,
    }


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    home = tmp_path_factory.mktemp("home")
    (port,) = free_ports(1)
    log = home / "log.txt"
    with log.open("w") as out:
        process = subprocess.Popen(
            **_command(home, port), stdout=out, stderr=subprocess.STDOUT, start_new_session=True
        )
    try:
        _wait_until_up(f"http://127.0.0.1:{port}/health", process, log)
        yield Server(home, f"http://127.0.0.1:{port}", log)
    finally:
        os.killpg(process.pid, signal.SIGKILL)  # nothing of it is needed: its leave takes seconds
        process.wait()


def _wait_until_up(address: str, process: subprocess.Popen, log: Path) -> None:
    deadline = time.monotonic() + 300
    while True:
        assert process.poll() is None, log.read_text()
        try:
            requests.get(address, timeout=60).raise_for_status()
            return
        except requests.RequestException:
            assert time.monotonic() < deadline, log.read_text()
            time.sleep(0.5)


@pytest.mark.slow
def test_mlflow_answers_whoever_has_the_password_under_its_own_name_only(server: Server):
    assert server.search(None) == 401
    assert server.search("not-the-password") == 401
    assert server.search(server.password, Host="attacker.example") == 403
    assert server.search(server.password) == 200
    assert server.search(server.password, Host="localhost:6001") == 200  # a tunnel from there


@pytest.mark.slow
def test_nobody_kills_a_server_that_a_busy_head_keeps_silent(server: Server):
    # With more than one worker uvicorn's supervisor does, before they have even started.
    pid = int((server.home / "mlflow" / "pid").read_text())
    below = [process.cmdline() for process in psutil.Process(pid).children(recursive=True)]
    assert ["uvicorn" in words for words in below] == [True], below


TAKES_A_RUN = """
from pathlib import Path
from mlflow import MlflowClient

client = MlflowClient()
run = client.create_run(client.create_experiment("robust")).info
client.log_metric(run.run_id, "val/robust_acc", 0.5)
client.log_text(run.run_id, "weights", "model.txt")
assert client.get_run(run.run_id).data.metrics == {"val/robust_acc": 0.5}
assert run.artifact_uri.startswith("mlflow-artifacts:")
assert Path(client.download_artifacts(run.run_id, "model.txt", ".")).is_file()
"""


@pytest.mark.slow
def test_mlflow_takes_a_run_with_its_artifacts_from_a_client_on_the_head(
    server: Server, tmp_path: Path
):
    # What a job has: the address in its environment, the password in the user's own file.
    own = environment(HOME=str(server.home), MLFLOW_TRACKING_URI=server.address)
    done = subprocess.run(
        [sys.executable, "-c", TAKES_A_RUN], cwd=tmp_path, env=own, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
    assert list((server.home / "mlflow" / "artifacts").rglob("model.txt"))


@pytest.mark.slow
def test_the_password_is_in_a_file_of_its_user_alone_and_nowhere_else(server: Server):
    assert server.search(server.password) == 200
    assert len(server.password) == 48
    holds = [
        path
        for path in server.home.rglob("*")
        if path.is_file() and server.password.encode() in path.read_bytes()
    ]
    assert holds == [server.home / ".mlflow" / "credentials"]
    private = [path for path in server.home.rglob("*") if path.is_file() and path != server.log]
    assert {path.name for path in private} >= {"credentials", "mlflow.db", "users.db"}
    assert [oct(path.stat().st_mode) for path in private if path.stat().st_mode & 0o077] == []
    arguments = [path.read_bytes() for path in Path("/proc").glob("[0-9]*/cmdline")]
    assert not any(server.password.encode() in words for words in arguments)


@pytest.mark.slow
def test_a_second_start_leaves_the_running_server_and_its_password_alone(server: Server):
    before = server.password
    again = subprocess.run(**_command(server.home, 1), capture_output=True, text=True, timeout=300)
    assert (again.returncode, "already" in again.stdout) == (0, True)
    assert server.password == before
    assert server.search(before) == 200


def test_lost_credentials_are_refused_before_a_server_starts(tmp_path: Path):
    (tmp_path / "mlflow").mkdir()
    (tmp_path / "mlflow" / "users.db").touch()
    done = subprocess.run(**_command(tmp_path, 1), capture_output=True, text=True, timeout=300)
    assert done.returncode == 2
    assert "put it back, or delete" in done.stderr
    assert not (tmp_path / ".mlflow" / "credentials").exists()
