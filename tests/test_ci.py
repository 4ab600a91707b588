"""Continuous integration: the workflow, the scripts in .ci/, and the lowest versions."""

from __future__ import annotations

import os
import runpy
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import yaml

ROOT = Path(__file__).parents[1]
WORKFLOW = ROOT / ".github" / "workflows" / "ci.yml"
SCRIPTS = [ROOT / ".ci" / name for name in ("run", "lowest")]
TEST_COMMAND = "pip install -e '.[test]' && pytest"


def check_schema(workflow: Path) -> subprocess.CompletedProcess[str]:
    """Checks a file against the schema that GitHub's workflows follow, without a network."""
    command = ["check_jsonschema", "--builtin-schema", "vendor.github-workflows", str(workflow)]
    return subprocess.run(
        [sys.executable, "-m", *command], capture_output=True, text=True, check=False
    )


def read_workflow() -> dict[str, Any]:
    """Returns the workflow; YAML 1.1 takes the key `on` for a truth value."""
    workflow = yaml.safe_load(WORKFLOW.read_text())
    return {"on" if key is True else key: value for key, value in workflow.items()}


def jobs_of(event: str) -> dict[str, list[str]]:
    """Returns the commands of each job that an event starts."""
    return {
        name: [step["run"] for step in job["steps"] if "run" in step]
        for name, job in read_workflow()["jobs"].items()
        if f"github.event_name == '{event}'" in job["if"].split(" || ")
    }


def test_workflows_follow_githubs_schema() -> None:
    workflows = sorted(WORKFLOW.parent.iterdir())
    assert WORKFLOW in workflows
    for workflow in workflows:
        checked = check_schema(workflow)
        assert checked.returncode == 0, checked.stdout + checked.stderr


def test_the_schema_refuses_a_misspelt_key(tmp_path: Path) -> None:
    broken = tmp_path / "ci.yml"
    broken.write_text(WORKFLOW.read_text().replace("timeout-minutes", "timeout_minutes"))
    checked = check_schema(broken)
    assert checked.returncode == 1
    assert "timeout_minutes" in checked.stdout


def test_pushes_and_pull_requests_run_the_whole_check() -> None:
    assert {"push", "pull_request"} <= read_workflow()["on"].keys()
    assert jobs_of("push") == jobs_of("pull_request") == {"check": [".ci/run"]}


def test_exhaustive_tests_and_lowest_versions_run_nightly_and_on_demand() -> None:
    assert read_workflow()["on"]["schedule"]
    nightly = {
        "exhaustive": ["pip install -e '.[test]'", "pytest -m exhaustive"],
        "lowest": [".ci/lowest"],
    }
    assert jobs_of("schedule") == jobs_of("workflow_dispatch") == nightly


def test_jobs_have_a_time_limit_few_permissions_and_replace_older_ones() -> None:
    workflow = read_workflow()
    assert workflow["permissions"] == {"contents": "read"}
    assert workflow["concurrency"]["cancel-in-progress"] is True
    for name, job in workflow["jobs"].items():
        assert 20 <= job["timeout-minutes"] <= 60, name
        assert "permissions" not in job, name


def test_every_python_version_of_the_readme_is_checked() -> None:
    versions = read_workflow()["jobs"]["check"]["strategy"]["matrix"]["python"]
    assert f"Python {' or '.join(versions)}" in (ROOT / "README.md").read_text()
    assert f'requires-python = ">={versions[0]}"' in (ROOT / "pyproject.toml").read_text()


def test_the_readmes_test_command_is_what_ci_runs_last() -> None:
    assert f"\n```bash\n{TEST_COMMAND}\n```\n" in (ROOT / "README.md").read_text()
    assert (ROOT / ".ci" / "run").read_text().splitlines()[-1] == TEST_COMMAND


@pytest.mark.parametrize("script", SCRIPTS, ids=lambda path: path.name)
def test_scripts_stop_at_the_first_error_and_read_no_input(script: Path) -> None:
    assert os.access(script, os.X_OK)
    text = script.read_text()
    assert text.startswith("#!/usr/bin/env bash\n")
    assert "\nset -euo pipefail\nexec </dev/null\n" in text
    subprocess.run(["bash", "-n", str(script)], check=True)


@pytest.fixture(scope="module")
def versions() -> dict[str, Any]:
    return runpy.run_path(str(ROOT / ".ci" / "lowest_versions.py"))


PYPROJECT = """
[build-system]
requires = ["setuptools>=77.0.1"]
[project]
name = "raymi"
dependencies = ["a[x,y]>=1.9,<3", "b>=2", "c==1.0"]
[project.optional-dependencies]
server = ["a[z]>=1.10"]
test = ["raymi[server]", "d>=4"]
dev = ["raymi[test]", "e>=5"]
"""


def test_lowest_versions_keep_extras_and_take_the_higher_bound(versions: dict[str, Any]) -> None:
    lowest = versions["lowest_versions"]
    base = ["setuptools==77.0.1", "a[x,y]==1.9", "b==2", "c==1.0"]
    assert lowest(PYPROJECT, []) == base
    assert lowest(PYPROJECT, ["test", "dev"]) == [*base, "d==4", "e==5"]
    assert lowest(PYPROJECT, ["server"]) == [base[0], "a[x,y,z]==1.10", *base[2:]]


def test_a_requirement_without_a_lower_bound_is_refused(versions: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match="b<3: write a lower bound"):
        versions["lowest_versions"](PYPROJECT.replace("b>=2", "b<3"), [])


def test_every_requirement_of_raymi_has_a_lower_bound(versions: dict[str, Any]) -> None:
    text = (ROOT / "pyproject.toml").read_text()
    lowest = versions["lowest_versions"](text, ["docs", "server", "test", "dev"])
    assert len(lowest) > 25
    assert "ray[default,train,tune]==2.58" in lowest
