"""The folded twin answers as its classifier does in eval mode, also after it has learnt."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from raymi.attacks.pgd import pgd
from raymi.errors import UserError
from raymi.models import build_model
from raymi.models.batchnorm import convert_batchnorm
from raymi.models.folding import FoldedClassifier

FOLDED = {
    "resnet18": 20, "preact-resnet18": 8, "wrn-28-10": 13, "vgg19": 16, "small-cnn": 6,
    "small-resnet": None,
}  # fmt: skip
"""BatchNorms that follow a convolution; the others of preactivation networks stay as they are."""


def learned(name: str, *, synchronised: bool = False) -> nn.Module:
    torch.manual_seed(0)
    model = build_model(
        name, num_classes=10, image_size=32, mean=(0.5,) * 3, std=(0.25,) * 3, width=0.25
    ).double()
    if synchronised:
        convert_batchnorm(model)
    learn(model)
    return model


def learn(model: nn.Module) -> None:
    """Moves weights, and running statistics with them."""
    model.train()
    for _ in range(2):
        model(torch.rand(4, 3, 32, 32).double())
    with torch.no_grad():
        for parameter in model.parameters():
            parameter += 0.1 * torch.randn_like(parameter)
    model.eval()


@pytest.mark.parametrize("name", FOLDED)
def test_outputs_and_gradients_equal_eval_mode(name: str) -> None:
    model = learned(name)
    folded = FoldedClassifier(model).eval()
    if FOLDED[name] is not None:
        assert folded.num_folded == FOLDED[name]
    for _ in range(2):
        x = torch.rand(3, 3, 32, 32).double().requires_grad_()
        outputs = [model(x), folded(x)]
        grads = [torch.autograd.grad(z.square().sum(), x)[0] for z in outputs]
        for one, other in (outputs, grads):
            largest = float(one.detach().abs().max())
            torch.testing.assert_close(one, other, rtol=1e-9, atol=1e-9 * largest)
        learn(model)
        folded.refresh()


def test_batchnorm_over_all_workers_folds_too() -> None:
    model = learned("small-cnn", synchronised=True)
    folded = FoldedClassifier(model).eval()
    x = torch.rand(2, 3, 32, 32).double()
    assert folded.num_folded > 0
    torch.testing.assert_close(folded(x), model(x), rtol=1e-9, atol=1e-9)


def test_the_classifier_is_unchanged_and_the_copy_is_not_trained() -> None:
    model = learned("small-cnn")
    before = {name: value.clone() for name, value in model.state_dict().items()}
    folded = FoldedClassifier(model)
    y = torch.tensor([1, 2])
    pgd(folded, torch.rand(2, 3, 32, 32).double(), y, eps=0.1, alpha=0.05, steps=2)
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())
    own = {id(p) for p in model.parameters()}
    assert not any(p.requires_grad for p in folded.parameters() if id(p) not in own)


class Branching(nn.Module):
    """Decides by the values in a batch, which no trace can follow."""

    def __init__(self) -> None:
        super().__init__()
        self.linear = nn.Linear(3, 2)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.linear(x) if x.sum() > 0 else -self.linear(x)


def test_an_untraceable_network_is_refused_with_the_remedy() -> None:
    with pytest.raises(UserError, match=r"cannot trace .*: set scaling\.fold_batchnorm=false"):
        FoldedClassifier(Branching())
