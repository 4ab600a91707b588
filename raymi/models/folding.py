"""A twin of a classifier for attacks: in eval mode a BatchNorm after a convolution is part of it.

In eval mode BatchNorm is an affine map with constant coefficients; right after a convolution both
are one convolution with other weights. An attack calls the network some twenty times for each
update of its weights, so folding once saves a pass over all activations each time.
"""

from __future__ import annotations

from copy import deepcopy

import torch
from torch import Tensor, fx, nn
from torch.nn.modules.batchnorm import _BatchNorm

from raymi.errors import UserError


class FoldedClassifier(nn.Module):
    """Eval-mode outputs of a classifier, with every BatchNorm that follows a convolution folded.

    Shares all other modules with the classifier; `refresh` takes over what training has changed.

    Args: model, images to logits.
    Raises: UserError where torch.fx cannot trace the model.
    """

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        try:
            graph = _Tracer().trace(model)
        except Exception as error:
            raise UserError(
                f"torch.fx cannot trace this network ({error}): set scaling.fold_batchnorm=false"
            ) from error
        modules = dict(model.named_modules())
        self._pairs: list[tuple[nn.Conv2d, _BatchNorm, nn.Conv2d]] = []
        self.network = fx.GraphModule(model, graph)
        for node in list(graph.nodes):
            conv, norm = _pair(node, modules)
            if conv is None or norm is None:
                continue
            folded = _like(conv)
            self.network.set_submodule(str(node.args[0].target), folded)
            node.replace_all_uses_with(node.args[0])
            graph.erase_node(node)
            self._pairs.append((conv, norm, folded))
        self.network.delete_all_unused_submodules()
        self.network.recompile()
        self.refresh()

    @property
    def num_folded(self) -> int:
        """How many BatchNorms are folded away."""
        return len(self._pairs)

    @torch.no_grad()
    def refresh(self) -> None:
        """Takes over the classifier's present weights and running statistics."""
        for conv, norm, folded in self._pairs:
            assert norm.running_mean is not None
            assert norm.running_var is not None
            # gamma (w * x + b - mean) / sqrt(var + eps) + beta
            scale = norm.weight / torch.sqrt(norm.running_var + norm.eps)
            bias = norm.running_mean if conv.bias is None else norm.running_mean - conv.bias
            folded.weight.copy_(conv.weight * scale[:, None, None, None])
            assert folded.bias is not None
            folded.bias.copy_(norm.bias - bias * scale)

    def forward(self, x: Tensor) -> Tensor:
        """Args: x (B, 3, H, W) in [0, 1]. Returns: logits (B, K), those of eval mode."""
        return self.network(x)


class _Tracer(fx.Tracer):
    """Looks only into modules that are made of others; what a single one does stays in there."""

    def is_leaf_module(self, m: nn.Module, module_qualified_name: str) -> bool:
        alone = next(m.children(), None) is None
        return alone or super().is_leaf_module(m, module_qualified_name)


def _pair(
    node: fx.Node, modules: dict[str, nn.Module]
) -> tuple[nn.Conv2d | None, _BatchNorm | None]:
    """The convolution and the BatchNorm that are called one after the other here, each once."""
    norm = _called(node, modules)
    source = node.args[0] if node.args else None
    if not isinstance(norm, _BatchNorm) or not isinstance(source, fx.Node):
        return None, None
    conv = _called(source, modules)
    alone = len(source.users) == 1 and all(
        sum(other.op == "call_module" and other.target == one.target for other in node.graph.nodes)
        == 1
        for one in (node, source)
    )
    followed = norm.running_mean is not None and norm.affine
    if not isinstance(conv, nn.Conv2d) or not alone or not followed:
        return None, None
    return conv, norm


def _called(node: fx.Node, modules: dict[str, nn.Module]) -> nn.Module | None:
    return modules.get(str(node.target)) if node.op == "call_module" else None


def _like(conv: nn.Conv2d) -> nn.Conv2d:
    """A convolution of the same kind with a bias, that nobody trains."""
    made = deepcopy(conv)
    made.bias = nn.Parameter(conv.weight.new_zeros(conv.out_channels))
    return made.requires_grad_(False)
