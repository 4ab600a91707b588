"""What the classifier's MI term keeps for its backward pass, by form."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd.graph import saved_tensors_hooks

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
    """Bytes in distinct storages, the parameters' left out, that the MI term saves."""
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
    """Bytes that the MI term of a step saves for backward, with `mi` settings laid over it."""
    # which classifier gives the logits makes no difference to the term
    small = {"model.name": "small-cnn", "model.width": None, "model.depth": 4}
    every = {**GIVEN, **small, **settings, "optim.batch_size": batch}
    made = trainee(arm_config(config, STAGED, every), device)
    learner, estimators = made.state.classifier, made.state.estimators
    assert learner is not None
    assert estimators is not None
    sizes: list[int] = []
    mi_loss: Any = learner.task.mi_loss

    def counted(*args: Any, **kwargs: Any) -> Any:
        with saved_bytes(estimators) as storages:
            result = mi_loss(*args, **kwargs)
        sizes.append(sum(storages.values()))
        return result

    learner.task.mi_loss = counted  # type: ignore[assignment]
    made.state.step(next(made.batches), 0)
    return max(sizes)


def saved_by_naive(config: Config, device: torch.device, batch: int) -> int:
    """Bytes that the four estimates of the naive schedule save for backward, outputs given."""
    settings = {**GIVEN, "mi.form": "released", "optim.batch_size": batch}
    made = trainee(arm_config(config, STAGED, settings), device)
    estimators, x = made.state.estimators, next(made.batches).x
    assert estimators is not None
    estimators.eval()
    logits = torch.randn(len(x), num_classes(config), device=device)
    with saved_bytes(estimators) as storages:
        kept = [
            neg_mi(critic, u, logits.clone().requires_grad_())
            for critic, u in ((estimators.natural, x), (estimators.adversarial, x - x))
            for _ in ("h(x)", "h(x_adv)")
            if critic is not None
        ]
    del kept
    return sum(storages.values())


@contextmanager
def saved_bytes(owner: nn.Module) -> Iterator[dict[int, int]]:
    """Counts what autograd saves inside: bytes by storage, those of the owner's own left out."""
    own = {t.untyped_storage().data_ptr() for t in (*owner.parameters(), *owner.buffers())}
    storages: dict[int, int] = {}
    alive: list[Tensor] = []  # so that no storage gets the place of another

    def pack(tensor: Tensor) -> Tensor:
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in own:
            storages[storage.data_ptr()] = storage.nbytes()
            alive.append(tensor.detach())
        return tensor

    with saved_tensors_hooks(pack, lambda tensor: tensor):
        yield storages
    alive.clear()
