"""Checks of a user's own network before any long work: training, attacks, files.

They run on a second network of the user's function, and leave the first one and the global random
state unchanged, and so the results of a run.
"""

from __future__ import annotations

import copy
import operator
from collections.abc import Callable, Iterator
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.parameter import UninitializedParameter

from raymi.attacks.untouched import copied_tensors, differing, same_values
from raymi.errors import UserError, what_happened
from raymi.evaluation.changes import NO_CHANGES, changes_of
from raymi.formatting import listed
from raymi.models.modes import evaluation_mode, full_precision
from raymi.models.running_statistics import running_statistics_frozen
from raymi.models.user_model import check_logits
from raymi.random_state import random_state_kept
from raymi.weights import parse_weights, weights_as_bytes

_NUM = 4  # images: BatchNorm over samples alone takes no fewer than 2
_FORWARDS = 4  # in train mode, to find parameters that are used in some of them only
_SAME = 1e-3  # of the largest logit: more is not rounding


@dataclass(frozen=True)
class NetworkFacts:
    """Facts about a network that training depends on.

    Args:
        unused: parameters without a gradient in some forward pass in train mode.
        remarks: warnings for the user, a line each.
    """

    unused: tuple[str, ...] = ()
    remarks: tuple[str, ...] = ()


def check_network(
    name: str,
    model: nn.Module,
    build: Callable[[], nn.Module],
    *,
    num_classes: int,
    image_size: int,
    averaged: bool = False,
    frozen_gradients: bool = False,
) -> NetworkFacts:
    """Checks that a user's own network can be trained, attacked, saved and loaded.

    Args:
        name: of the user's function, for messages.
        model: the classifier to train; runs in eval mode without gradients only.
        build: builds another classifier in the same way.
        num_classes: K.
        image_size: height and width in pixels.
        averaged: whether training averages weights, which copies the network.
        frozen_gradients: whether losses need gradients through forwards without updates of running
            statistics.

    Raises:
        UserError: a check failed; the message has the remedy.
    """
    gpus = range(torch.cuda.device_count()) if torch.cuda.is_initialized() else ()
    with random_state_kept(1, [torch.device("cuda", index) for index in gpus]):
        other = build()
        checks = _Checks(name, other, num_classes, image_size)
        if _net(other) is _net(model):
            raise checks.error(
                "make a new network at each call", "the same one", "build it within the function"
            )
        check_logits(name, other, num_classes, image_size, num_images=1)
        checks.parameters()
        checks.state(model)
        if averaged:
            checks.copies()
        logits = checks.attacked()
        unused, recomputes = checks.trained()
        if recomputes and frozen_gradients:
            checks.recomputed()
    remarks = [*_softmax(logits)]
    if recomputes:
        remarks.append(
            "this network's backward pass goes through BatchNorm once more (activation "
            "checkpointing): its running statistics follow each batch twice"
        )
    return NetworkFacts(unused, tuple(remarks))


class _Checks:
    """Checks of one network, in sequence."""

    def __init__(self, name: str, model: nn.Module, num_classes: int, image_size: int) -> None:
        self.name, self.model, self.num_classes = name, model, num_classes
        parameters = [p for p in model.parameters() if not isinstance(p, UninitializedParameter)]
        device = parameters[0].device if parameters else torch.device("cpu")
        shape = (_NUM, 3, image_size, image_size)
        generator = torch.Generator().manual_seed(0)
        self.x = torch.rand(shape, generator=generator).to(device)
        self.y = torch.arange(_NUM, device=device) % num_classes

    def error(self, expected: str, came: str, remedy: str) -> UserError:
        """Returns the error of a failed check."""
        return UserError(f"model {self.name!r} must {expected}, got {came}: {remedy}")

    def parameters(self) -> None:
        """Refuses a network without parameters to train, or with uninitialised ones."""
        lazy = [
            k for k, p in self.model.named_parameters() if isinstance(p, UninitializedParameter)
        ]
        if lazy:
            raise self.error(
                "use all of its lazy layers",
                f"{listed(lazy)}, which no forward pass initialises",
                "remove them",
            )
        if not any(p.requires_grad for p in self.model.parameters()):
            raise self.error(
                "have parameters to train",
                "none that require a gradient",
                "add layers with parameters, or leave requires_grad alone",
            )

    def state(self, model: nn.Module) -> None:
        """Refuses a state dict of other values than finite dense tensors, or that omits state.

        Serialises it, parses it again and loads it into the second network.
        """
        state = model.state_dict()
        no_tensors = [f"{k} ({type(v).__name__})" for k, v in state.items() if not _is_tensor(v)]
        if no_tensors:
            raise self.error(
                "have a state dict of tensors alone",
                listed(no_tensors),
                "keep such values in buffers, or let get_extra_state return a tensor",
            )
        odd = [f"{k} ({v.layout})" for k, v in state.items() if not _is_dense(v)]
        if odd:
            raise self.error(
                "keep dense tensors in its state dict",
                listed(odd),
                "register others with persistent=False, and compute them in the network",
            )
        broken = [key for key, value in state.items() if not bool(value.isfinite().all())]
        if broken:
            raise self.error(
                "begin with finite weights and buffers",
                f"others in {listed(broken)}",
                "register constants such as masks with persistent=False",
            )
        try:
            saved = parse_weights(weights_as_bytes(state), "its state dict").tensors
        except Exception as error:
            raise self.error(
                "have a state dict that safetensors can hold",
                what_happened(error),
                "keep dense tensors of plain number types",
            ) from error
        try:
            self.model.load_state_dict(saved)
        except Exception as error:
            raise self.error(
                "make networks that take each other's state dict",
                " ".join(str(error).split())[:300],
                "let it make the same layers at each call",
            ) from error
        outputs, others = (self._outputs(one) for one in (model, self.model))
        if not _close(outputs, others):
            raise self.error(
                "keep all that its outputs depend on in its state dict",
                "two networks with the same state dict and other outputs",
                "register such tensors with register_buffer(..., persistent=True)",
            )

    def copies(self) -> None:
        """Refuses a network that weight averaging cannot copy."""
        try:
            copy.deepcopy(self.model)
        except Exception as error:
            raise self.error(
                "survive copy.deepcopy, which averaged weights need",
                what_happened(error),
                "keep no tensors with a graph in attributes, or set optim.ema=0",
            ) from error

    def attacked(self) -> Tensor:
        """Refuses a network that changes in eval mode, or has no gradient by the images.

        Returns:
            Logits in eval mode (B, K).
        """
        x = self.x.clone().requires_grad_()
        with evaluation_mode(self.model):
            before = copied_tensors(self.model)
            logits = self._logits(x, "")
            grad = self._gradient(logits, x)
            changed = differing(before, copied_tensors(self.model))
            changes = NO_CHANGES if changed or grad is None else changes_of(self.model, self.x, 0)
        if grad is None:
            raise self.error(
                "have outputs that depend on the images as autograd sees it",
                "no gradient by the images in eval mode",
                "compute in torch without detach(), no_grad() or numpy",
            )
        if changed := changed or list(changes.state):
            raise self.error(
                "leave parameters, buffers and attributes alone in eval mode",
                f"changes in {listed(changed)}",
                "update them in train mode only (self.training)",
            )
        if changes.outputs:
            raise self.error(
                "give the same images the same logits in eval mode",
                "other logits later, with the same random state",
                "keep no state outside of its parameters and buffers",
            )
        return logits.detach()

    def _gradient(self, logits: Tensor, x: Tensor) -> Tensor | None:
        if not logits.requires_grad:
            return None
        try:
            loss = F.cross_entropy(logits, self.y)
            return torch.autograd.grad(loss, x, allow_unused=True)[0]
        except Exception as error:
            raise self.error(
                "have gradients by the images (torch.autograd.grad) in eval mode",
                what_happened(error),
                "checkpoint activations with use_reentrant=False, and change nothing in place "
                "that autograd needs",
            ) from error

    def trained(self) -> tuple[tuple[str, ...], bool]:
        """Runs forward and backward passes in train mode; refuses buffers that change shape.

        Returns:
            Names of parameters without a gradient in some pass, and whether a backward pass changes
            buffers.
        """
        self.model.train()
        shapes = _shapes(self.model)
        unused: dict[str, None] = {}
        recomputes = False
        for _ in range(_FORWARDS):
            self.model.zero_grad(set_to_none=True)
            logits = self._logits(self.x, " in train mode")
            between = copied_tensors(self.model)
            self._backward(logits, " in train mode")
            recomputes |= bool(differing(between, copied_tensors(self.model)))
            named = self.model.named_parameters()
            unused |= {k: None for k, p in named if p.requires_grad and p.grad is None}
            if other := differing(shapes, _shapes(self.model), operator.eq):
                raise self.error(
                    "keep the names, shapes and types of its buffers",
                    f"others in {listed(other)} after a forward pass",
                    "register each buffer once, in its final shape and type",
                )
        num = sum(p.requires_grad for p in self.model.parameters())
        if len(unused) == num:
            raise self.error(
                "have outputs that depend on its parameters",
                "no gradient by any of them in train mode",
                "compute in torch without detach() or no_grad()",
            )
        return tuple(unused), recomputes

    def recomputed(self) -> None:
        """Refuses BatchNorm that a backward pass computes again, for losses that freeze it."""
        before = copied_tensors(self.model)
        try:
            with running_statistics_frozen(self.model):
                logits = full_precision(self.model(self.x))
            F.cross_entropy(logits, self.y).backward()
            problem = listed(differing(before, copied_tensors(self.model)))
        except Exception as error:
            problem = what_happened(error)
        if problem:
            raise self.error(
                "compute no BatchNorm again in its backward pass, with this loss",
                problem,
                "leave BatchNorm out of torch.utils.checkpoint, or train without it",
            )

    def _logits(self, x: Tensor, mode: str) -> Tensor:
        """Returns logits (B, K) with their graph."""
        expected = f"map images {tuple(x.shape)} to logits {(_NUM, self.num_classes)}{mode}"
        given: list[tuple[Tensor, Tensor, int]] = []
        watch = _net(self.model).register_forward_pre_hook(
            lambda _, inputs: given.append((inputs[0], inputs[0].clone(), inputs[0]._version))
        )
        try:
            with torch.enable_grad():
                logits = self.model(x)
        except (Exception, SystemExit) as error:
            problem = what_happened(error)
            raise UserError(f"model {self.name!r} must {expected}, but {problem}") from error
        finally:
            watch.remove()
        if any(
            one._version == version and not same_values(one.detach(), before.detach())
            for one, before, version in given
        ):
            raise self.error(
                f"leave the images that it is given alone{mode}",
                "changes that autograd does not see, as through .data or numpy",
                "let it begin with x = x.clone()",
            )
        if not isinstance(logits, Tensor):
            raise self.error(
                expected, type(logits).__name__, "return the logits alone, in train mode too"
            )
        shape = tuple(logits.shape)
        if shape != (_NUM, self.num_classes) or not logits.is_floating_point():
            raise self.error(expected, f"{shape} of {logits.dtype}", "return logits of each image")
        if not bool(logits.isfinite().all()):
            raise self.error(
                expected, "logits that are not finite", "begin with weights that give finite ones"
            )
        return full_precision(logits)

    def _backward(self, logits: Tensor, mode: str) -> None:
        if not logits.requires_grad:
            return
        try:
            F.cross_entropy(logits, self.y).backward()
        except Exception as error:
            raise self.error(
                f"have gradients{mode}",
                what_happened(error),
                "change nothing in place that autograd needs",
            ) from error

    def _outputs(self, model: nn.Module) -> Tensor:
        try:
            with random_state_kept(0), torch.no_grad(), evaluation_mode(model):
                return full_precision(model(self.x))
        except (Exception, SystemExit) as error:
            raise self.error(
                f"map images {tuple(self.x.shape)} to logits each time",
                what_happened(error),
                "let a forward pass change nothing that later ones depend on",
            ) from error


def _softmax(logits: Tensor) -> Iterator[str]:
    """Warns of outputs (B, K) that are probabilities."""
    sums = logits.sum(dim=1)
    if logits.shape[1] > 1 and logits.min() >= 0 and bool(((sums - 1).abs() < 1e-4).all()):
        yield (
            "this network's outputs lie in [0, 1] and sum to 1, as after a softmax: losses and "
            "attacks expect logits, so leave the softmax out"
        )


def _net(model: nn.Module) -> nn.Module:
    """The user's part of a classifier."""
    return getattr(model, "net", model)


def _is_tensor(value: object) -> bool:
    return isinstance(value, Tensor)


def _is_dense(value: Tensor) -> bool:
    return value.layout == torch.strided and not value.is_quantized and not value.is_meta


def _shapes(model: nn.Module) -> dict[str, tuple[torch.Size, torch.dtype]]:
    """Shapes and types of everything in the state dict."""
    return {k: (v.shape, v.dtype) for k, v in model.state_dict().items() if isinstance(v, Tensor)}


def _close(one: Tensor, other: Tensor) -> bool:
    largest = torch.maximum(one.abs(), other.abs()).max().clamp_min(1e-6)
    return bool((one - other).abs().max() <= _SAME * largest)
