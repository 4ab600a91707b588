"""Copy of a classifier for attacks, with BatchNorms folded into the convolutions before them.

In eval mode BatchNorm is an affine map with constant coefficients; right after a convolution both
equal one convolution with other weights. An attack calls the network about twenty times for each
update of its weights, so folding once saves a pass over all activations in each call.
"""

from __future__ import annotations

from copy import deepcopy

import torch
from torch import Tensor, fx, nn
from torch.nn.modules.batchnorm import _BatchNorm

from raymi.errors import UserError
from raymi.models.modes import evaluation_mode


class FoldedClassifier(nn.Module):
    """Eval-mode outputs of a classifier, with every BatchNorm that follows a convolution folded.

    All other modules are shared with the classifier; `refresh` copies what training has changed.

    Args:
        model: images to logits.

    Raises:
        UserError: Where torch.fx cannot trace the model.
    """

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        try:
            with evaluation_mode(model):  # a traced forward keeps the mode of that time
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
        """Number of folded BatchNorms."""
        return len(self._pairs)

    @torch.no_grad()
    def refresh(self) -> None:
        """Recomputes the folded weights from the classifier's weights and running statistics."""
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
        """Maps x (B, 3, H, W) in [0, 1] to logits (B, K) of eval mode."""
        return self.network(x)


class _Tracer(fx.Tracer):
    """Tracer that does not enter modules without children."""

    def is_leaf_module(self, m: nn.Module, module_qualified_name: str) -> bool:
        childless = next(m.children(), None) is None
        return childless or super().is_leaf_module(m, module_qualified_name)


def _pair(
    node: fx.Node, modules: dict[str, nn.Module]
) -> tuple[nn.Conv2d | None, _BatchNorm | None]:
    """Returns a convolution and the BatchNorm right after it, if each is called once."""
    norm = _called(node, modules)
    source = node.args[0] if node.args else None
    if not isinstance(norm, _BatchNorm) or not isinstance(source, fx.Node):
        return None, None
    conv = _called(source, modules)
    called_once = len(source.users) == 1 and all(
        sum(other.op == "call_module" and other.target == one.target for other in node.graph.nodes)
        == 1
        for one in (node, source)
    )
    has_statistics = norm.running_mean is not None and norm.affine
    if not isinstance(conv, nn.Conv2d) or not called_once or not has_statistics:
        return None, None
    return conv, norm


def _called(node: fx.Node, modules: dict[str, nn.Module]) -> nn.Module | None:
    return modules.get(str(node.target)) if node.op == "call_module" else None


def _like(conv: nn.Conv2d) -> nn.Conv2d:
    """Returns a convolution of the same shape with a bias, without gradients."""
    folded = deepcopy(conv)
    folded.bias = nn.Parameter(conv.weight.new_zeros(conv.out_channels))
    return folded.requires_grad_(False)
