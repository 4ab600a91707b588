"""raymi as users have it: from a wheel, an editable install and the uploaded folder of a job."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest
from raymi_command import environment
from uploaded_files import ROOT, uploaded_files

from raymi.__main__ import COMMANDS
from raymi.tuning.space_files import known_spaces, space_file

SPACES = sorted(path.stem for path in (ROOT / "tune_spaces").glob("*.toml"))
PIP = ("--no-deps", "--no-index", "--quiet", "--disable-pip-version-check")
LOOKUP = """
import json, raymi
from raymi.tuning.space_files import known_spaces, space_file
files = {name: str(space_file(name)) for name in known_spaces()}
print(json.dumps({"package": raymi.__file__, "files": files}))
"""
HELP = """
from raymi.__main__ import COMMANDS, main
for name in COMMANDS:
    print("\\f" + name)
    print("exit code", main([name, "--help"]))
print("\\fspaces")
main(["tune", "--help", "space"])
"""


@pytest.fixture(scope="module")
def source(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A copy of the checkout: builds leave files in it."""
    folder = tmp_path_factory.mktemp("source")
    for name in ("raymi", "studies", "tune_spaces"):
        ignored = shutil.ignore_patterns("__pycache__")
        shutil.copytree(ROOT / name, folder / name, ignore=ignored)
    for name in ("LICENSE", "README.md", "pyproject.toml"):
        shutil.copy(ROOT / name, folder)
    return folder


@pytest.fixture(scope="module")
def wheel(source: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The built wheel."""
    out = tmp_path_factory.mktemp("wheel")
    _python("-m", "pip", "wheel", ".", *PIP, "--no-build-isolation", "-w", str(out), cwd=source)
    (file,) = out.iterdir()
    return file


@pytest.fixture(scope="module")
def installed(wheel: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder in which the wheel is installed."""
    target = tmp_path_factory.mktemp("installed")
    _python("-m", "pip", "install", *PIP, "--target", str(target), str(wheel), cwd=target)
    return target


def _python(*words: str, cwd: Path, **env: str) -> str:
    """Runs Python; returns its output."""
    done = _run(sys.executable, *words, cwd=cwd, **env)
    assert done.returncode == 0, f"{done.stdout}\n{done.stderr}"
    return done.stdout


def _run(*words: str, cwd: Path, **env: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(words, cwd=cwd, env=environment(**env), capture_output=True, text=True)


def _files(folder: Path) -> set[str]:
    return {path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file()}


def test_a_wheel_has_every_file_of_the_package_and_the_search_spaces(
    source: Path, wheel: Path
) -> None:
    package = {f"raymi/{file}" for file in _files(source / "raymi")}
    spaces = {f"raymi/tune_spaces/{file}" for file in _files(source / "tune_spaces")}
    content = {name for name in zipfile.ZipFile(wheel).namelist() if ".dist-info/" not in name}
    assert content == package | spaces, "pyproject.toml lists packages and their data"
    assert len(spaces) == len(SPACES) >= 5


def test_spaces_are_found_from_a_wheel(installed: Path, tmp_path: Path) -> None:
    installed_files = json.loads(_python("-c", LOOKUP, cwd=tmp_path, PYTHONPATH=str(installed)))
    folder = installed / "raymi"
    assert installed_files["package"] == str(folder / "__init__.py")
    assert installed_files["files"] == {
        name: f"{folder}/tune_spaces/{name}.toml" for name in SPACES
    }


@pytest.mark.parametrize("mode", ["lenient", "strict"])
def test_spaces_are_found_from_an_editable_install(source: Path, tmp_path: Path, mode: str) -> None:
    build = f"""
from setuptools.build_meta import build_editable
build_editable({str(tmp_path)!r}, {{"editable_mode": {mode!r}}})
"""
    _python("-c", build, cwd=source)
    (file,) = tmp_path.glob("*.whl")
    target = tmp_path / "site"
    zipfile.ZipFile(file).extractall(target)
    # -S: without the site-packages of this environment, which has a raymi of its own
    lookup = f"import site; site.addsitedir({str(target)!r})\n{LOOKUP}"
    installed_files = json.loads(_python("-S", "-c", lookup, cwd=tmp_path, PYTHONPATH=""))
    package = Path(installed_files["package"]).parent
    assert package.is_relative_to(source)
    assert list(installed_files["files"]) == SPACES
    for name, path in installed_files["files"].items():
        assert Path(path).is_relative_to(source)
        assert Path(path).samefile(source / "tune_spaces" / f"{name}.toml")


def test_spaces_are_found_from_the_working_folder_of_a_job(tmp_path: Path) -> None:
    job, elsewhere = tmp_path / "job", tmp_path / "elsewhere"
    for path in uploaded_files("raymi", "tune_spaces"):
        (job / path).parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(ROOT / path, job / path)
    elsewhere.mkdir()
    for cwd in (job, elsewhere):  # a command may change the folder
        installed_files = json.loads(_python("-c", LOOKUP, cwd=cwd, PYTHONPATH=str(job)))
        assert Path(installed_files["package"]).parent.samefile(job / "raymi")
        assert installed_files["files"] == {
            name: f"{job}/tune_spaces/{name}.toml" for name in SPACES
        }


def test_spaces_of_the_current_folder_come_first(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    assert known_spaces() == SPACES
    own = tmp_path / "tune_spaces"
    own.mkdir()
    for name in ("mine.toml", "smoke.toml", "notes.txt"):
        (own / name).touch()
    assert known_spaces() == sorted([*SPACES, "mine"])
    assert space_file("mine") == own / "mine.toml"
    assert space_file("smoke") == own / "smoke.toml"
    assert space_file("tune_spaces/mine.toml") == own / "mine.toml"
    assert space_file("notes") is None
    assert space_file("other.toml") is None


@pytest.mark.slow
def test_the_console_script_of_a_wheel_runs_every_command(installed: Path, tmp_path: Path) -> None:
    script = str(installed / "bin" / "raymi")
    listed = _run(script, cwd=tmp_path, PYTHONPATH=str(installed))
    assert (listed.returncode, listed.stderr) == (0, "")
    assert [line.split()[0] for line in listed.stdout.splitlines()[2:]] == list(COMMANDS)

    # one process, as each would import the same libraries again
    text = _python("-c", HELP, cwd=tmp_path, PYTHONPATH=str(installed))
    helps = dict(part.split("\n", 1) for part in text.split("\f")[1:])
    spaces = helps.pop("spaces").partition("\nspaces (space=NAME)\n")[2]
    assert [line.split()[0] for line in spaces.splitlines()] == SPACES
    assert list(helps) == list(COMMANDS)
    for name, text in helps.items():
        assert f"python -m raymi.{name} " in text
        assert text.endswith("exit code 0\n")

    refused = _run(script, "tune", "space=smokee", cwd=tmp_path, PYTHONPATH=str(installed))
    assert (refused.returncode, refused.stdout) == (2, "")
    assert "no search space 'smokee': did you mean smoke?" in refused.stderr
