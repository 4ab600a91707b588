"""Writes a classifier that runs without raymi, in RobustBench's format."""

from __future__ import annotations

import hashlib
from pathlib import Path

from raymi.commands.command_line import CommandLine
from raymi.commands.export.options import ExportOptions
from raymi.commands.find_model import find_model_source, needs_data
from raymi.commands.option_types import writable_folder
from raymi.config import Config
from raymi.errors import UserError
from raymi.evaluation.model_source import ModelSource
from raymi.files import save
from raymi.models.source import classifier_source
from raymi.overrides import examine
from raymi.runs.run_paths import home_folder
from raymi.terminal.console import Terminal
from raymi.terminal.print_line import print_line

_LOAD_MODEL = '''WEIGHTS_SHA256 = "{sha256}"


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


def export_command(line: CommandLine[ExportOptions]) -> int:
    """Runs the command; returns its exit code."""
    options = line.options
    source = exportable(options.model, examine(line.tree)[0], options.which)
    folder = options.folder or writable_folder(home_folder() / "exports" / source.name)
    export(source, folder)
    print_line(Terminal(), f"{source.name} is in {folder}: weights.pt, architecture.py")
    return 0


def exportable(name: str, config: Config, which: str | None) -> ModelSource:
    """Finds a classifier whose architecture raymi knows.

    Args:
        name: as of `model=`.
        config: `out` is the folder of runs.
        which: one of a run's models; None: the chosen one.

    Raises:
        UserError: there is none, or it is a function or an exported program.
    """
    expected = "expected a run of raymi, or a model that raymi logged in MLflow"
    if needs_data(name, config):
        raise UserError(f"model={name}: {expected}")
    source = find_model_source(name, config, which=which).source
    if source.build["kind"] != "raymi":
        raise UserError(f"model={name}: {expected}, got an exported program, which has no source")
    return source


def export(source: ModelSource, folder: Path) -> None:
    """Writes `weights.pt` and `architecture.py`.

    Raises:
        StorageError: a file cannot be written.
    """
    build = {key: value for key, value in source.build.items() if key not in ("kind", "source")}
    title = f"{source.name}: {build['name']} of {build['num_classes']} classes, exported by raymi."
    load_model = _LOAD_MODEL.format(sha256=hashlib.sha256(source.weights).hexdigest())
    code = classifier_source(build, ("import hashlib", "import io", "import pathlib"))
    save(folder / "weights.pt", source.weights)
    save(folder / "architecture.py", f'"""{title}"""\n\n{code}\n\n\n{load_model}'.encode())
