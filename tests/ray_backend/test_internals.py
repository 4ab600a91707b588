"""Private names of Ray are imported in one module, and exist in the installed Ray."""

from __future__ import annotations

import ast
import importlib
import inspect
import tomllib
from pathlib import Path

import pytest
from packaging.requirements import Requirement

from raymi.ray_backend import internals
from raymi.ray_backend.elastic import FailuresWithoutProgress, SaveBeforeResize

ROOT = Path(__file__).parents[2]
INTERNALS = ROOT / "raymi" / "ray_backend" / "internals.py"
DOCUMENTED = {
    "ray",
    "ray.actor",
    "ray.autoscaler.sdk",
    "ray.exceptions",
    "ray.train",
    "ray.train.torch",
    "ray.tune",
    "ray.tune.error",
    "ray.tune.integration.ray_train",
    "ray.tune.schedulers",
    "ray.tune.search",
}
"""Modules with a documented API; names of other modules count as private."""
IN_TESTS = {
    # checks cluster/*.yaml as `ray up` does, without a cloud
    "ray.autoscaler._private.util.prepare_config",
    "ray.autoscaler._private.util.validate_config",
    # where `ray job submit` would send a job
    "ray.dashboard.utils.get_address_for_submission_client",
    # the files that `ray job submit` uploads
    "ray._private.thirdparty.pathspec.PathSpec",
    # simulated nodes that can be lost
    "ray.cluster_utils.Cluster",
    # the runtime environment that Ray Tune gives a trial
    "ray.tune.execution.class_cache._ActorClassCache",
}
"""Private names that tests use, in addition to `internals`."""


def names_of_ray(source: str) -> set[str]:
    """Returns the full dotted names of Ray that a module's source imports or reads."""
    tree, bound, names = ast.parse(source), dict[str, str](), set[str]()
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            imported = [(one.name, one.asname or "") for one in node.names]
        elif isinstance(node, ast.ImportFrom) and not node.level:
            imported = [(f"{node.module}.{one.name}", one.asname or one.name) for one in node.names]
        else:
            continue
        for name, alias in imported:
            if name == "ray" or name.startswith("ray."):
                names.add(name)
                bound[alias or "ray"] = name if alias else "ray"
    for node in ast.walk(tree):
        if isinstance(node, ast.Attribute):
            attributes = [node.attr]
            while isinstance(node := node.value, ast.Attribute):
                attributes.append(node.attr)
            if isinstance(node, ast.Name) and node.id in bound:
                names.add(".".join([bound[node.id], *reversed(attributes)]))
    return names


def is_private(name: str) -> bool:
    module = name.rpartition(".")[0]
    if any(part.startswith("_") and not part.endswith("__") for part in name.split(".")):
        return True
    owners = {name, module}
    if (owner := module.rpartition(".")[2])[:1].isupper():  # a method of a documented class
        owners.add(module.removesuffix(f".{owner}"))
    return not owners & DOCUMENTED


def private_names(files: list[Path]) -> dict[str, set[str]]:
    """Returns the private names of Ray by the file that uses them."""
    found = {
        str(path.relative_to(ROOT)): {n for n in names_of_ray(path.read_text()) if is_private(n)}
        for path in files
    }
    return {path: names for path, names in found.items() if names}


@pytest.mark.parametrize(
    ("source", "private"),
    [
        ("import ray; ray.get(1); ray.train.report({})", set()),
        ("from ray.train import ScalingConfig as S; S.anything()", set()),
        ("import ray; ray.util.queue.Queue", {"ray.util.queue.Queue"}),
        ("import ray; ray._private.worker()", {"ray._private.worker"}),
        ("import ray as r; r.train._internal", {"ray.train._internal"}),
        ("from ray import train; train.v2.api", {"ray.train.v2.api"}),
        ("from ray.tune.execution import class_cache", {"ray.tune.execution.class_cache"}),
        ("def f():\n import ray._raylet", {"ray._raylet"}),
    ],
)
def test_private_names_are_recognised(source: str, private: set[str]) -> None:
    found = {name for name in names_of_ray(source) if is_private(name)}
    assert private <= found
    assert bool(found) == bool(private)


def test_only_one_module_uses_private_names_of_ray() -> None:
    files = sorted((ROOT / "raymi").rglob("*.py"))
    assert len(files) > 100
    found = private_names([path for path in files if path != INTERNALS])
    assert found == {}, f"import these in {INTERNALS.relative_to(ROOT)}, or use Ray's public API"


def test_internals_has_only_private_names_and_the_installed_ray_has_them() -> None:
    imported = names_of_ray(INTERNALS.read_text())
    assert all(is_private(name) for name in imported)
    assert {name.rpartition(".")[2] for name in imported} == set(internals.__all__)
    assert all(getattr(internals, name) is not None for name in internals.__all__)


def test_tests_use_only_listed_private_names() -> None:
    found = private_names(sorted((ROOT / "tests").rglob("*.py")))
    names = set().union(*found.values())
    attributes = {name for name in names if name.rpartition(".")[0] in names}
    assert names - attributes == IN_TESTS, found
    for name in IN_TESTS:
        module, _, attribute = name.rpartition(".")
        assert hasattr(importlib.import_module(module), attribute), name


def test_ray_has_the_hooks_of_elastic_runs() -> None:
    known = set(dir(internals.ControllerCallback)) | set(dir(internals.WorkerGroupCallback))
    for callback in (SaveBeforeResize, FailuresWithoutProgress):
        hooks = {name for name in vars(callback) if name.startswith(("before_", "after_"))}
        assert len(hooks) >= 2
        assert hooks <= known


def test_a_worker_group_has_the_status_that_a_resize_reads() -> None:
    poll_status = inspect.signature(
        internals.WorkerGroup.poll_status,
        eval_str=True,
        globals=vars(inspect.getmodule(internals.WorkerGroup)),
    )
    assert "timeout" in poll_status.parameters
    assert {"finished", "errors"} <= set(dir(poll_status.return_annotation))


def test_ray_is_bounded_to_the_releases_that_have_these_names() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    (ray,) = (r for r in map(Requirement, project["dependencies"]) if r.name == "ray")
    assert ray.extras == {"default", "train", "tune"}
    tried = ("2.57.1", "2.58.0", "2.61.9", "2.62.0", "3.0.0")
    assert list(ray.specifier.filter(tried)) == ["2.58.0", "2.61.9"]
