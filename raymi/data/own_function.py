"""User's own data set, named as `package.module:function`, which returns torch Datasets."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from raymi.data.arrays import with_test_split
from raymi.data.source import Parts, Request, Source
from raymi.data.torch_dataset import check_dataset, read_datasets
from raymi.errors import UserError, what_happened
from raymi.own_code import import_function, takes
from raymi.random_state import random_state_kept

_PARTS = {1: ("data",), 2: ("train", "test"), 3: ("train", "val", "test")}
_EXPECTED = "return a torch Dataset of (image, label), (train, test) or (train, val, test)"


def own_source() -> Source:
    """Returns the reader of the user's function that the request names."""
    return Source(check=_check, load=_load)


def _check(request: Request) -> None:
    for part, dataset in _datasets(request).items():
        check_dataset(part, dataset)


def _load(request: Request) -> Parts:
    datasets = _datasets(request)
    with random_state_kept(0):
        sets = read_datasets(datasets, request.image_size)
    if "data" in sets:
        return with_test_split(sets["data"])
    return Parts(sets["train"], sets["test"], sets.get("val"))


def _datasets(request: Request) -> dict[str, Any]:
    """Calls the user's function; returns its data sets by part, the training set first.

    Random numbers, as of `torch.utils.data.random_split`, are the same on every worker.
    """
    function = import_function(request.name, "data set")
    arguments = {"root": request.root} if takes(function, "root") else {}
    if request.root is not None and not arguments:
        raise UserError(
            f"data set {request.name!r} takes no root=: leave out data.root, or let the function "
            "have this parameter"
        )
    returned = _called(request.name, function, arguments)
    sets = returned if isinstance(returned, (tuple, list)) else (returned,)
    if len(sets) not in _PARTS:
        raise UserError(f"data set {request.name!r} must {_EXPECTED}, got {len(sets)} parts")
    return dict(zip(_PARTS[len(sets)], sets, strict=True))


def _called(name: str, function: Callable[..., Any], arguments: dict[str, Any]) -> Any:
    try:
        with random_state_kept(0):
            return function(**arguments)
    except UserError:
        raise
    except (Exception, SystemExit) as error:
        raise UserError(
            f"data set {name!r} must {_EXPECTED}, but {what_happened(error)}: it is called without "
            "arguments, or with root= if it has that parameter"
        ) from error
