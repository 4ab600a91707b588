"""Pretrained weights that staged runs share: a classifier and its estimators.

torch is imported inside functions, as options of commands use this module.
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from raymi.config import Config
from raymi.errors import UserError
from raymi.files import write_atomically
from raymi.runs.run_folder import RunFolder

if TYPE_CHECKING:
    from torch import nn

_SAME_DATA = ("name", "image_size", "val_fraction", "split_seed", "limit")
_SAME_ESTIMATORS = ("hidden", "base_width", "depth", "score", "temperature", "natural_pattern")


def save_weights(path: Path, module: nn.Module, about: dict[str, str]) -> None:
    """Writes a module's weights in safetensors.

    Args:
        path: of the file.
        module: whose state dict is written.
        about: metadata, with `train_digest`, the digest of its training images.
    """
    from raymi.weights import weights_as_bytes

    write_atomically(path, weights_as_bytes(module.state_dict(), about))


def load_weights(path: Path, module: nn.Module, digest: str) -> None:
    """Loads weights of an earlier run into a module.

    Args:
        path: of the file; weights that the module lacks are ignored.
        module: receives the weights.
        digest: of this run's training images; other images would leak validation images.

    Raises:
        UserError: the file is damaged, of other training images, or does not fit the module.
    """
    from raymi.weights import read_weights_file

    weights, about = read_weights_file(path)
    trained_on = about.get("train_digest")
    if trained_on != digest:
        raise UserError(
            f"{path} was trained on other images (sha256 {str(trained_on)[:12]}) than this run is "
            f"({digest[:12]}): reuse a run with the same data settings"
        )
    own = module.state_dict()
    try:
        module.load_state_dict({k: v for k, v in weights.items() if k in own})
    except RuntimeError as error:
        problem = " ".join(str(error).split())[:300]
        raise UserError(
            f"{path} does not fit the network of this run ({problem}): let its code be the same "
            "as in the run that is reused"
        ) from None


def pretrained_path(folder: RunFolder) -> Path:
    """Returns the path of a run's pretrained classifier, or else of its best one."""
    pretrained = folder.pretrained
    return pretrained if pretrained.is_file() else folder.weights("best")


def pretrained_problems(config: Config) -> list[str]:
    """Checks the runs that `mi.pretrained` and `mi.estimators` name, by their folders.

    Returns:
        A line for each problem.
    """
    problems = []
    for key in ("pretrained", "estimators"):
        run = getattr(config.mi, key)
        if run is None:
            continue
        folder = RunFolder(Path(run))
        try:
            earlier = folder.read_config()
        except UserError as error:
            problems.append(f"mi.{key}: {error}")
            continue
        problems += [f"mi.{key}: {text}" for text in _differences(config, earlier, key)]
        path = pretrained_path(folder) if key == "pretrained" else folder.estimators
        if not path.is_file():
            what = "classifier" if key == "pretrained" else "estimators"
            problems.append(
                f"mi.{key}: the run {folder.name} has no finished {what} ({path} is missing): "
                "let it finish, or name another run"
            )
    return problems


def _differences(config: Config, earlier: Config, key: str) -> list[str]:
    pairs: list[tuple[str, object, object, str]]
    pairs = [(f"data.{name}", config.data, earlier.data, name) for name in _SAME_DATA]
    pairs += [(f"attack.{name}", config.attack, earlier.attack, name) for name in ("norm", "eps")]
    if key == "pretrained":
        names = ("name", "width", "depth")
        pairs += [(f"model.{name}", config.model, earlier.model, name) for name in names]
    else:
        pairs += [(f"mi.{name}", config.mi, earlier.mi, name) for name in _SAME_ESTIMATORS]
    texts = [
        f"expected {label}={getattr(theirs, name)} as in the run that is reused, got "
        f"{getattr(own, name)}: set {label}={getattr(theirs, name)}, or name another run"
        for label, own, theirs, name in pairs
        if getattr(own, name) != getattr(theirs, name)
    ]
    if key == "estimators":
        texts += [
            f"the run that is reused has no {kind} estimator: set mi.{kind}=false, or name "
            "another run"
            for kind in ("natural", "adversarial")
            if getattr(config.mi, kind) and not getattr(earlier.mi, kind)
        ]
    return texts
