"""What the classifier's MI term keeps for its backward pass, by form."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

from raymi.benchmarks.arms import GIVEN, STAGED, arm_config, trainee
from raymi.benchmarks.naive import neg_mi
from raymi.benchmarks.plan import Plan
from raymi.benchmarks.section import Section
from raymi.benchmarks.synthetic import num_classes
from raymi.config import Config

BATCH = 256
MIB = 2**20
_FORMS: dict[str, dict[str, Any]] = {
    "bounded, InfoNCE": {"mi.form": "bounded", "mi.bound": "infonce"},
    "bounded, DV": {"mi.form": "bounded", "mi.bound": "dv"},
    "paper": {"mi.form": "paper", "mi.bound": "dv"},
    "released": {"mi.form": "released", "mi.bound": "dv-released"},
}
_NAIVE = "released, naive"


def measure_saved(plan: Plan) -> Section:
    """Bytes in distinct storages, the parameters' left out, that the MI term holds for backward."""
    found = {
        form: saved_by_term(plan.config, settings, plan.device, BATCH)
        for form, settings in _FORMS.items()
    }
    found[_NAIVE] = saved_by_naive(plan.config, plan.device, BATCH)
    return Section(
        f"Saved for backward by the MI term at B = {BATCH}, H = {plan.config.mi.hidden}",
        ("form", "MiB"),
        [[form, f"{size / MIB:.1f}"] for form, size in found.items()],
        {"bytes": found, "batch": BATCH, "hidden": plan.config.mi.hidden},
        ("distinct storages, without parameters; with the local features, if they are kept",),
    )


def saved_by_term(
    config: Config, settings: dict[str, Any], device: torch.device, batch: int
) -> int:
    """Bytes that the MI term of a step holds for backward, with `mi` settings laid over it."""
    # which classifier gives the logits makes no difference to the term
    small = {"model.name": "small-cnn", "model.width": None, "model.depth": 4}
    every = {**GIVEN, **small, **settings, "optim.batch_size": batch}
    made = trainee(arm_config(config, STAGED, every), device)
    learner, estimators = made.state.classifier, made.state.estimators
    assert learner is not None
    assert estimators is not None
    x, y, _, sizes = next(made.batches)
    task: Any = learner.task
    loss, _ = task.mi_loss(estimators, x, x, *_outputs(2, x, config), y, sizes)
    return bytes_held([loss], estimators)


def saved_by_naive(config: Config, device: torch.device, batch: int) -> int:
    """Bytes that the four estimates of the naive schedule hold for backward, outputs given."""
    settings = {**GIVEN, "mi.form": "released", "optim.batch_size": batch}
    made = trainee(arm_config(config, STAGED, settings), device)
    estimators, x = made.state.estimators, next(made.batches).x
    assert estimators is not None
    estimators.eval()
    patterns = [(estimators.natural, x), (estimators.adversarial, x - x)]
    kept = [
        neg_mi(critic, u, logits)
        for critic, u in patterns
        for logits in _outputs(2, x, config)
        if critic is not None
    ]
    return bytes_held(kept, estimators)


def bytes_held(values: Sequence[Tensor], owner: nn.Module) -> int:
    """Bytes in distinct storages that the graph behind some values holds for its backward pass, the
    parameters and buffers of the owner left out."""
    own = {t.untyped_storage().data_ptr() for t in (*owner.parameters(), *owner.buffers())}
    held: dict[int, int] = {}
    seen: set[Any] = set()
    todo: list[Any] = [value.grad_fn for value in values]
    while todo:
        node = todo.pop()
        if node is None or node in seen:
            continue
        seen.add(node)
        todo += [following for following, _ in node.next_functions]
        for tensor in _saved_by(node):
            storage = tensor.untyped_storage()
            if storage.data_ptr() not in own:
                held[storage.data_ptr()] = storage.nbytes()
    return sum(held.values())


def _saved_by(node: Any) -> list[Tensor]:
    """Tensors that a node of autograd's graph keeps, be it torch's or a Function's own."""
    kept = [getattr(node, name) for name in dir(node) if name.startswith("_saved_")]
    kept += getattr(node, "saved_tensors", ())
    return [tensor for tensor in kept if isinstance(tensor, Tensor)]


def _outputs(num: int, x: Tensor, config: Config) -> list[Tensor]:
    """Logits (b, K) that ask for a gradient, as many times as `num` says."""
    made = torch.randn(num, len(x), num_classes(config), device=x.device)
    return [logits.requires_grad_() for logits in made]
