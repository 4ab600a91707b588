"""Checks of hardware, data, model and run folder before anything expensive starts."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

from raymi.config import Config
from raymi.data.settings import check_crop
from raymi.errors import UserError
from raymi.losses.registry import build_loss
from raymi.mi.forms.registry import term_class
from raymi.models import check_model
from raymi.ray_backend.session import check_this_machine, in_ray_job
from raymi.runs.run_paths import check_new_run


def input_problems(config: Config, *, new_run: bool) -> list[str]:
    """Returns a message for each missing input: CPUs or GPUs, data, model, folder of a new run.

    On a joined cluster the data may be on the workers' nodes only, so the workers check them.

    Args:
        config: of the run.
        new_run: whether the run is new and needs a free name.
    """
    from raymi.data import check_data  # imports torch, which options do without

    data, model = config.data, config.model
    checks: list[Callable[[], object]] = [
        partial(check_this_machine, config.scaling),
        partial(
            check_model,
            model.name,
            image_size=data.image_size or 32,
            width=model.width,
            depth=model.depth,
            activation=model.activation,
        ),
    ]
    if ":" in config.loss.base:
        checks.append(partial(build_loss, config.loss.base, config.loss.settings()))
    if ":" in config.mi.form:
        checks.append(partial(term_class, config.mi.form))
    if config.attack.name != "pgd":
        checks.append(partial(_check_attack, config.attack.name))
    if data.image_size is not None:
        checks.append(partial(check_crop, data.crop_padding, data.image_size))
    if not in_ray_job():
        checks.append(
            partial(
                check_data,
                data.name,
                data.root,
                image_size=data.image_size,
                val_fraction=data.val_fraction,
                download=data.download,
                limit=data.limit,
                generated=data.generated,
            )
        )
    if new_run:
        checks.append(partial(check_new_run, config))
    problems = []
    for check in checks:
        try:
            check()
        except UserError as error:
            problems.append(str(error))
    return problems


def _check_attack(name: str) -> None:
    from raymi.attacks.user_attack import import_attack

    import_attack(name)
