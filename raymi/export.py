"""`python -m raymi.export model=RUN [which=NAME] [folder=FOLDER]`: a classifier for those who have
no raymi, as RobustBench takes it.

model: a run of raymi (name or folder; which=last for another of its models than the chosen one), a
file of weights in it, or a registered model (models:/NAME@ALIAS).

Writes weights.pt, a state dict that torch.load(..., weights_only=True) reads, and architecture.py,
which needs torch alone (and the module of a network of your own) and defines make_model() and
load_model(), which compares the sha256 of weights.pt: a torch module of raw images in [0, 1] to
logits. folder: where to, by default exports/NAME.
"""

from __future__ import annotations

import hashlib
import sys
from pathlib import Path

from raymi.commands.cli import print_help, run_command, wants_help
from raymi.commands.find_model import find_model_source, needs_data
from raymi.commands.option_types import new_folder
from raymi.config import Config
from raymi.errors import UserError
from raymi.evaluation.model_source import ModelSource
from raymi.files import save
from raymi.models.source import classifier_source
from raymi.overrides import examine, flatten, split_words
from raymi.runs.events import MODELS
from raymi.runs.run_paths import home_folder
from raymi.terminal.console import Terminal
from raymi.terminal.print_line import print_line

USAGE = "python -m raymi.export model=RUN [which=NAME] [folder=FOLDER] [out=RUNS] [--help]"

_LOADS = '''WEIGHTS_SHA256 = "{sha256}"


def load_model(path: str = "weights.pt") -> nn.Module:
    """Returns the classifier with its weights, in eval mode; refuses a damaged file."""
    data = pathlib.Path(path).read_bytes()
    if hashlib.sha256(data).hexdigest() != WEIGHTS_SHA256:
        raise ValueError(f"{{path}} is damaged, or not the file that was exported with this module")
    model = make_model()
    weights = torch.load(io.BytesIO(data), map_location="cpu", weights_only=True)
    model.load_state_dict(weights)
    return model.eval()
'''


def main(argv: list[str] | None = None) -> int:
    """Runs the command; returns its exit code."""
    return run_command(_export, argv)


def _export(words: list[str]) -> int:
    console = Terminal()
    if wants_help(words):
        print_help(console, USAGE, __doc__, {}, lambda key: False)
        return 0
    parsed = split_words(words, {"model": (), "which": MODELS, "folder": ()})
    problems = list(parsed.problems)
    problems += [
        f"{key} decides nothing in an export: expected model, which, folder or out"
        for key in flatten(parsed.settings)
        if key != "out"
    ]
    if not parsed.own.get("model"):
        problems.append("model is needed: a run, or models:/NAME@ALIAS")
    config, wrong = examine(parsed.settings)
    if problems or wrong:
        raise UserError("\n".join([*problems, *wrong]))
    source = _source(parsed.own["model"], config, parsed.own.get("which"))
    place = home_folder() / "exports" / source.name
    folder = new_folder("folder", parsed.own.get("folder"), place, problems)
    if problems:
        raise UserError("\n".join(problems))
    _write(source, folder)
    print_line(console, f"{source.name} is in {folder}: weights.pt, architecture.py")
    return 0


def _source(name: str, config: Config, which: str | None) -> ModelSource:
    """A classifier of which raymi knows how it is built."""
    expected = "expected a run of raymi, or a model that raymi logged in MLflow"
    if needs_data(name, config):
        raise UserError(f"model={name}: {expected}")
    source = find_model_source(name, config, which=which).source
    if source.build["kind"] != "raymi":
        raise UserError(f"model={name}: {expected}, got an exported program, which has no source")
    return source


def _write(source: ModelSource, folder: Path) -> None:
    built = dict(source.build)
    title = f"{source.name}: {built['name']} of {built['num_classes']} classes, exported by raymi."
    loads = _LOADS.format(sha256=hashlib.sha256(source.weights).hexdigest())
    code = classifier_source(built, ("import hashlib", "import io", "import pathlib"))
    text = f'"""{title}"""\n\n{code}\n\n\n{loads}'
    save(folder / "weights.pt", source.weights)
    save(folder / "architecture.py", text.encode())


if __name__ == "__main__":
    sys.exit(main())
