"""Documentation: commands that parse, links that resolve, pages that build."""

from __future__ import annotations

import ast
import importlib
import re
import shlex
import subprocess
import sys
import tomllib
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest
from command_lines import PARSERS, parse, placeholder_runs
from tiny_runs import tiny_config

from raymi.__main__ import COMMANDS
from raymi.engine.context import LocalContext
from raymi.engine.loop import train
from raymi.errors import UserError
from raymi.runs.run_folder import RunFolder
from raymi.tuning.space import read_space

ROOT = Path(__file__).parents[1]
README = ROOT / "README.md"
DOCS = sorted((ROOT / "docs").glob("*.md"))
PAGES = [README, ROOT / "CONTRIBUTING.md", *DOCS]
LINKING = [*PAGES, ROOT / "CHANGELOG.md", *sorted(ROOT.glob("cluster/*.md")),
           *sorted(ROOT.glob("studies/*/README.md"))]  # fmt: skip

LANGUAGES = {"bash", "python", "toml", "text", "bibtex", "mermaid"}
PROGRAMS = {
    ".", "cat", "chmod", "export", "git", "mkdocs", "mlflow", "mypy", "pip", "pre-commit", "pytest",
    "python", "python3", "ray", "raymi", "ruff", "torchrun",
}  # fmt: skip
"""Programs that command blocks may use."""
MODULES = {"venv", "studies.search", "studies.faults", "studies.released_schedule"}
"""Modules, other than raymi's commands, that `python -m` may run."""
RAY = {"attach", "dashboard", "down", "exec", "get-auth-token", "job", "up"}
RUNS = ("RUN", "namid", "at")
"""Placeholder names of runs."""


@dataclass(frozen=True)
class Block:
    """A fenced block of a page."""

    page: Path
    line: int
    language: str
    text: str

    def __str__(self) -> str:
        return f"{self.page.relative_to(ROOT)}:{self.line}"


def blocks(page: Path) -> Iterator[Block]:
    """Yields the fenced blocks of a page, without indentation; without a language they are bash."""
    text = page.read_text()
    for found in re.finditer(r"^( *)```(\w*)\n(.*?)^\1```$", text, re.MULTILINE | re.DOTALL):
        indent, language, content = found.groups()
        lines = [line.removeprefix(indent) for line in content.splitlines()]
        line = text.count("\n", 0, found.start()) + 1
        yield Block(page, line, language or "bash", "\n".join(lines))


BLOCKS = [block for page in PAGES for block in blocks(page)]
BASH = [block for block in BLOCKS if block.language == "bash"]
PYTHON = [block for block in BLOCKS if block.language == "python"]


def commands(text: str) -> Iterator[list[str]]:
    """Yields the simple commands of a shell text as words; assignments before them are dropped."""
    for line in text.splitlines():
        lexer = shlex.shlex(line, posix=True, punctuation_chars="&|;")
        lexer.whitespace_split = True
        words: list[str] = []
        for word in [*lexer, ";"]:
            if set(word) <= set("&|;"):
                if words:
                    yield words
                words = []
            elif words or not re.match(r"\w+=", word):
                words.append(word)
            elif match := re.match(r"\w+=\$\((\S+)", word):
                words.append(match[1])


def raymi_words(words: list[str]) -> list[str] | None:
    """Returns a raymi command as module and words; None for other programs."""
    if "--" in words and words[:3] == ["ray", "job", "submit"]:
        words = words[words.index("--") + 1 :]
    if words[0] == "raymi":
        return [f"raymi.{words[1]}", *words[2:]]
    if words[0] in ("python", "torchrun") and "-m" in words:
        module, *rest = words[words.index("-m") + 1 :]
        return [module, *rest] if module.startswith("raymi.") else None
    return None


def shown_commands() -> Iterator[tuple[str, list[str]]]:
    """Yields raymi's commands of all blocks, and of tables where nothing is left out."""
    for block in BASH:
        for words in commands(block.text):
            if (found := raymi_words(words)) is not None:
                yield str(block), found
    for page in PAGES:
        for text in re.findall(r"`((?:python -m raymi\.|raymi )\w+ [^`]*)`", page.read_text()):
            if not re.search(r"\[|\.\.\.( |$)| \| |NAME", text):
                (words,) = commands(text)
                found = raymi_words(words)
                assert found is not None
                yield page.name, found


SHOWN = list(shown_commands())


def test_readme_is_short() -> None:
    assert len(README.read_text().splitlines()) <= 150


def test_readme_lists_every_command() -> None:
    listed = re.findall(r"^\| `raymi (\w+)", README.read_text(), re.MULTILINE)
    assert sorted(listed) == sorted(COMMANDS)


def test_every_page_says_what_its_reader_can_do_after_it() -> None:
    pages = [page for page in DOCS if page.name not in ("index.md", "configuration.md")]
    assert [page.name for page in pages if "\nAfter reading this page you " not in
            page.read_text()[:200]] == []  # fmt: skip


def test_site_navigation_lists_every_page() -> None:
    listed = re.findall(r": ([\w-]+\.md)$", (ROOT / "mkdocs.yml").read_text(), re.MULTILINE)
    assert sorted(listed) == [page.name for page in DOCS]


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_blocks_are_in_known_languages(page: Path) -> None:
    assert {block.language for block in blocks(page)} <= LANGUAGES


@pytest.mark.parametrize("page", LINKING, ids=lambda page: str(page.relative_to(ROOT)))
def test_pages_have_no_path_of_one_machine(page: Path) -> None:
    paths = re.findall(r"/(?:root|home|work)/\S*|/tmp/(?!ray\b)\S*", page.read_text())
    assert paths == []


@pytest.mark.parametrize("block", BASH, ids=str)
def test_command_blocks_are_valid_shell_with_known_programs(block: Block) -> None:
    subprocess.run(["bash", "-n"], input=block.text, text=True, check=True)
    for words in commands(block.text):
        program = words[0]
        if program == ".ci/run":
            continue
        assert program in PROGRAMS
        if program == "ray":
            assert words[1] in RAY
        elif program.startswith("python") and raymi_words(words) is None:
            assert words[2] in MODULES if words[1] == "-m" else (ROOT / words[1]).is_file()


def test_documentation_shows_every_command() -> None:
    assert {words[0] for _, words in SHOWN} == {f"raymi.{name}" for name in COMMANDS}
    assert set(PARSERS) == {f"raymi.{name}" for name in COMMANDS}


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with the runs and files that the pages' commands name."""
    folder = tmp_path_factory.mktemp("documentation")
    placeholder_runs(folder, RUNS)
    (folder / "CIFAR-10-C").mkdir()
    for block in BLOCKS:
        first, _, rest = block.text.partition("\n")
        if match := re.fullmatch(r"# ([\w/]+\.(?:py|toml))", first):
            file = folder / match[1]
            file.parent.mkdir(exist_ok=True)
            with file.open("a") as out:
                out.write(f"{rest}\n\n\n")
    return folder


@pytest.fixture
def in_home(home: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(home)
    monkeypatch.syspath_prepend(home)
    # As in a job: its cluster has the CPUs, the GPUs and the data.
    monkeypatch.setenv("RAY_ADDRESS", "auto")
    return home


@pytest.mark.parametrize(
    ("page", "words"), SHOWN, ids=[" ".join([page, *words]) for page, words in SHOWN]
)
def test_commands_are_understood(page: str, words: list[str], in_home: Path) -> None:
    module, *rest = (word.replace("/shared", str(in_home)) for word in words)
    parse(module, rest)


@pytest.mark.parametrize(
    ("module", "word"),
    [(name, "learning_rate=0.1") for name in PARSERS] + [("raymi.train", "seed=S")],
)
def test_a_wrong_word_in_documentation_would_fail(module: str, word: str, in_home: Path) -> None:
    words = {
        "raymi.standalone": ["name=a"], "raymi.report": ["RUN"], "raymi.evaluate": ["model=RUN"],
        "raymi.tune": ["space=smoke"],
    }.get(module, [])  # fmt: skip
    with pytest.raises((UserError, AssertionError)):
        parse(module, [*words, word])


@pytest.mark.parametrize("block", PYTHON, ids=str)
def test_python_blocks_compile_and_their_imports_exist(block: Block) -> None:
    tree = ast.parse(block.text)
    for node in ast.walk(tree):
        if isinstance(node, ast.ImportFrom) and str(node.module).startswith("raymi"):
            module = importlib.import_module(str(node.module))
            for alias in node.names:
                found = hasattr(module, alias.name)
                assert found or importlib.import_module(f"{node.module}.{alias.name}")


def test_python_that_calls_a_command_runs() -> None:
    (block,) = (block for block in PYTHON if "train.main" in block.text)
    names: dict[str, object] = {}
    exec(block.text, names)
    assert names["code"] == 0


def test_networks_of_the_pages_map_images_to_logits(in_home: Path) -> None:
    import torch

    module = importlib.import_module("my.models")
    x = torch.rand(2, 3, 16, 16)
    for make in (module.make_net, module.net):
        assert make(num_classes=10, image_size=16)(x).shape == (2, 10)


def test_attacks_of_the_pages_find_adversarial_images(in_home: Path) -> None:
    import torch

    from raymi.attacks.catalogue import Threat, find_attack
    from raymi.attacks.execution import Batch, run_attack

    torch.manual_seed(0)
    model = torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(3 * 64, 10))
    x = torch.rand(6, 3, 8, 8)
    batch = Batch(x, model(x).argmax(1), torch.arange(6), 0)
    attack = find_attack("my.attacks:momentum")
    assert run_attack(attack, model, batch, Threat("linf", 0.2)).broken.all()


@pytest.mark.slow
def test_data_network_optimiser_and_augmentation_of_the_pages_train(in_home: Path) -> None:
    own = {"data.name": "my.data:digits", "model.name": "my.models:make_net", "model.width": None,
           "model.depth": None, "optim.name": "my.optim:no_decay_of_biases", "optim.epochs": 1,
           "data.augment": "my.augment:policy", "mi.weight": 0}  # fmt: skip
    folder = RunFolder(in_home / "runs" / "own")
    folder.path.mkdir()
    train(tiny_config(own), LocalContext(), folder)
    assert folder.weights("best").is_file()


def test_spaces_of_the_pages_can_be_searched(in_home: Path) -> None:
    shown = [block for block in BLOCKS if block.language == "toml"]
    assert shown
    for block in shown:
        tomllib.loads(block.text)
    for name in ("mine.toml", "losses.toml"):
        assert read_space(in_home / name).incompatible("quickstart") is None


def _anchors(page: Path) -> set[str]:
    """Returns the anchors of a page's headings, as GitHub and MkDocs make them."""
    text = re.sub(r"^( *)```.*?^\1```$", "", page.read_text(), flags=re.MULTILINE | re.DOTALL)
    headings = re.findall(r"^#+ (.+)$", text, re.MULTILINE)
    plain = [re.sub(r"[^\w\s-]", "", heading).strip().lower() for heading in headings]
    return {re.sub(r"[\s-]+", "-", heading) for heading in plain}


@pytest.mark.parametrize("page", LINKING, ids=lambda page: str(page.relative_to(ROOT)))
def test_links_resolve(page: Path) -> None:
    text = re.sub(r"^( *)```.*?^\1```$", "", page.read_text(), flags=re.MULTILINE | re.DOTALL)
    for link in re.findall(r"\]\(([^)\s]+)\)", text):
        if link.startswith(("https://", "http://")):
            continue
        name, _, anchor = link.partition("#")
        target = (page.parent / name).resolve() if name else page
        assert target.exists(), f"{link}: no such file"
        if page in DOCS:
            assert target.is_relative_to(ROOT / "docs"), f"{link}: not part of the site"
        if anchor:
            assert anchor in _anchors(target), f"{link}: no such heading"


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_files_that_pages_name_exist(page: Path) -> None:
    folders = "raymi|studies|tests|cluster|tune_spaces|docs|engine|mi|data|attacks|ray_backend"
    named = re.findall(rf"`((?:{folders})/[\w/.-]+\.\w+)`", page.read_text())
    places = (ROOT, ROOT / "raymi", ROOT / "tests")
    assert [name for name in named if not any((place / name).exists() for place in places)] == []


@pytest.mark.parametrize("page", [ROOT / "CONTRIBUTING.md", ROOT / "docs" / "architecture.md"])
def test_every_folder_of_the_package_is_described(page: Path) -> None:
    folders = {path.parent.name for path in (ROOT / "raymi").glob("*/__init__.py")}
    text = page.read_text()
    assert [folder for folder in folders if f"{folder}/" not in text] == []


@pytest.mark.exhaustive
def test_the_site_builds_without_a_warning(tmp_path: Path) -> None:
    command = [sys.executable, "-m", "mkdocs", "build", "--strict", "--site-dir", str(tmp_path)]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert (tmp_path / "training" / "index.html").is_file()
