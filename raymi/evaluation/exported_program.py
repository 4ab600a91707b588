"""Networks exported by torch.export, loaded without their code and without pickle."""

from __future__ import annotations

import io
import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager

import torch
from torch import Tensor, nn
from torch.export.passes import move_to_device_pass

from raymi.errors import UserError, first_line
from raymi.evaluation.weight_files import archive_names

_REFUSED = ("aotinductor/", "/custom_obj_", "/opaque_obj_")
"""Parts of record names with compiled code, or with objects that torch would unpickle."""


class Program(nn.Module):
    """Exported network as an ordinary module.

    torch's own module refuses train() and eval(), as its mode is fixed; here they only set the
    flag. Moving it to a device also moves the tensors that its graph creates.

    Args:
        exported: program of torch.export.
    """

    def __init__(self, exported: torch.export.ExportedProgram) -> None:
        super().__init__()
        self._exported = exported
        self.graph = exported.module()

    def forward(self, x: Tensor) -> Tensor:
        """Returns logits (B, K) of images x (B, 3, H, W) in [0, 1]."""
        return self.graph(x)

    def train(self, mode: bool = True) -> Program:
        """Sets the flag of this module; the graph does not change."""
        self.training = mode
        return self

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> Program:
        # Nodes that create tensors name their device, so the graph is rebuilt.
        device = fn(torch.empty(0, device=self._device())).device
        if device != self._device():
            flags = [parameter.requires_grad for parameter in self.parameters()]
            self._exported = move_to_device_pass(self._exported, device)
            self.graph = self._exported.module()
            for parameter, flag in zip(self.parameters(), flags, strict=True):
                parameter.requires_grad_(flag)
        return super()._apply(fn, recurse)

    def _device(self) -> torch.device:
        tensors = (*self._exported.state_dict.values(), *self._exported.constants.values())
        return next((t.device for t in tensors if isinstance(t, Tensor)), torch.device("cpu"))


def load_program(data: bytes, name: str) -> Program:
    """Loads the network of a `.pt2` file onto the CPU, in eval mode.

    A graph is a program: load only files from people you trust.

    Args:
        data: content of the file.
        name: for messages.

    Raises:
        UserError: it is damaged, of another version of torch, or needs pickle or compiled code.
    """
    try:
        names = archive_names(data, name)
        refused = [one for one in names if any(part in one for part in _REFUSED)]
        if refused:
            raise UserError(
                f"{name}: expected an exported program of tensors alone, got {refused[0]}, which "
                "would run code when it is loaded: export it without"
            )
        with _without_pickle():
            exported = torch.export.load(io.BytesIO(data))
    except UserError:
        raise
    except Exception as error:
        raise UserError(
            f"{name}: expected a program that this version of torch ({torch.__version__}) can load "
            f"without pickle ({type(error).__name__}: {first_line(error)}): export it again with "
            "torch.export.save"
        ) from None
    return Program(exported).eval()


@contextmanager
def _without_pickle() -> Iterator[None]:
    """Forbids the unpickling that torch.export.load falls back to."""
    name = "TORCH_FORCE_WEIGHTS_ONLY_LOAD"
    before = os.environ.get(name)
    os.environ[name] = "1"
    try:
        yield
    finally:
        if before is None:
            del os.environ[name]
        else:
            os.environ[name] = before
