"""What can be refused before anything expensive starts: data, model and their match."""

from __future__ import annotations

from raymi.config import Config
from raymi.data import check_data
from raymi.errors import UserError
from raymi.models import check_model
from raymi.orchestration.ray_session import in_ray_job


def check_inputs(config: Config) -> None:
    """Refuses data that are not there and models that cannot be built, all at once.

    On a joined cluster the data may be on the workers' nodes only: there the workers check.

    Raises: UserError.
    """
    problems: list[str] = []
    data, model = config.data, config.model
    try:
        if not in_ray_job():
            check_data(
                data.name,
                data.root,
                image_size=data.image_size,
                val_fraction=data.val_fraction,
                download=data.download,
            )
    except UserError as error:
        problems.append(str(error))
    try:
        check_model(
            model.name, image_size=data.image_size or 32, width=model.width, depth=model.depth
        )
    except UserError as error:
        problems.append(str(error))
    if problems:
        raise UserError("\n".join(problems))
