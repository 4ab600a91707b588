"""Options of `python -m raymi.bench`: measures step cost, scaling and memory on this machine.

Shows where the time of a training step goes, what NAMID costs beside AT, PGD against torchattacks,
one worker against several, and peak memory. Alternatives are measured in turn, and medians are
shown, beside targets (a missed target is no error). Ctrl-C ends it and shows what was measured
until then.

Images are random, so that no data set is needed. All keys of a run may be set, too.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Annotated, Any, NamedTuple

from pydantic import Field

from raymi.benchmarks.plan import PARTS, image_size
from raymi.commands.command_line import Command, CommandLine
from raymi.commands.option_types import BaseRecipe, Names, NewFile, known
from raymi.config import Config
from raymi.errors import UserError
from raymi.fields import Count, Listed, Section, at_most
from raymi.hardware import available_gpus
from raymi.models import check_model
from raymi.overrides import examine, overlay
from raymi.recipes import on_recipe

DEFAULTS: dict[str, Any] = {
    "data": {"name": "cifar10"},
    "model": {"name": "resnet18"},
    "mi": {"hidden": 2048},
    "optim": {"batch_size": 64},
    "scaling": {"channels_last": True, "fold_batchnorm": True},
}
"""Settings of a benchmark without a recipe, laid over the defaults of `raymi.config`."""

_REFUSED = {
    "mi.pretrained": "the estimators of a measurement have fresh weights",
    "mi.estimators": "the estimators of a measurement have fresh weights",
    "data.root": "images are random",
    "data.generated": "images are random",
}


class BenchOptions(Section):
    """Options of `python -m raymi.bench`, beside the settings of a run."""

    recipe: BaseRecipe | None = None
    """Recipe to measure, or a .toml file that names one and changes its settings; none: ResNet-18
    on 32x32 images, batch 64, PGD-10, estimators of 2048 units, with scaling.channels_last and
    scaling.fold_batchnorm."""
    parts: Annotated[Names, known("part", PARTS), Listed("parts", PARTS)] = ()
    """Parts to measure, comma-separated; none: all."""
    rounds: Count = 5
    """Rounds of measurements in turn, in one process."""
    runs: Count = 3
    """Runs in turn of each kind that needs fresh processes."""
    loop_steps: Count = 8
    """Measured steps of such a run."""
    threads: Annotated[int, Field(ge=1), at_most(4096)] | None = None
    """Threads of this process; none: torch's default."""
    json_file: Annotated[NewFile | None, Field(alias="json")] = None
    """File for all numbers."""


class BenchRequest(NamedTuple):
    """Checked command line, and the configuration to measure."""

    line: CommandLine[BenchOptions]
    config: Config


def requested(words: Sequence[str]) -> BenchRequest:
    """Parses and checks a command line.

    Raises:
        UserError: a line for each problem.
    """
    line = COMMAND.parse(words)
    problems: list[str] = []
    if line.options.recipe is None:
        tree = overlay(DEFAULTS, line.tree)
    else:
        tree, problems = on_recipe(line.options.recipe, line.tree)
    config, wrong = examine(tree)
    problems += wrong
    problems += [
        f"{key} cannot be set here: {why}"
        for key, why in _REFUSED.items()
        if line.settings.get(key) is not None
    ]
    if not wrong:
        problems += _unsuitable(config)
    line.refuse(*problems)
    return BenchRequest(line, config)


def _unsuitable(config: Config) -> list[str]:
    """Returns why a valid configuration cannot be measured, a line for each reason."""
    problems: list[str] = []
    if not (config.mi.has_estimators and config.mi.natural and config.mi.adversarial):
        problems.append(
            "expected a configuration with both kinds of MI, got one without: leave out what "
            "switches them off; AT is measured in any case"
        )
    try:
        model = config.model
        check_model(model.name, image_size=image_size(config), width=model.width, depth=model.depth)
    except UserError as error:
        problems.append(str(error))
    most = image_size(config).bit_length() - 1
    if config.mi.depth > most:
        problems.append(f"mi.depth must be at most {most} here, got {config.mi.depth}")
    if config.scaling.use_gpu == "true" and not available_gpus():
        problems.append("use_gpu=true needs a GPU, torch sees none: leave it out")
    return problems


COMMAND: Command[BenchOptions] = Command(
    "bench", BenchOptions, requested, "raymi.commands.bench.command:bench"
)
