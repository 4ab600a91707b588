"""What a bound needs of the scores of a global batch, computed where the local features are.

The local features (b, H, P) are large, the global ones (b, H) small. So each worker gathers the
global features of all B samples, scores them against its own patterns, takes a partial logsumexp
over its own columns, and sends each worker the parts of its rows. A worker communicates
O(B (H + P)) numbers, never the features of locations. Scores (b, B, P) that are too large are
computed in parts, some columns at a time, and once more in the backward pass.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.utils.checkpoint import checkpoint

from raymi.collectives import Collectives
from raymi.mi.bounds import F_DIVERGENCES


@dataclass(frozen=True)
class Matching:
    """Scores of a worker's own b samples, reduced over the global batch of B.

    positive: (b, P), T[i, i, p].
    log_negatives: (b, P), logsumexp of T[i, j, p] over j != i, i's own pattern truly left out.
    num: B.
    divergence: name of the f-divergence that `negative` is for, where one was asked for.
    negative: (b, P), mean of its negative term of T[i, j, p] over j != i.
    """

    positive: Tensor
    log_negatives: Tensor
    num: int
    divergence: str | None = None
    negative: Tensor | None = None

    def infonce(self) -> Tensor:
        """(b,) nats, each at most log B; equals `bounds.infonce` on the whole matrix."""
        log_candidates = torch.logaddexp(self.positive, self.log_negatives)
        return (self.positive - log_candidates + math.log(max(self.num, 1))).mean(dim=1)

    def donsker_varadhan(self) -> Tensor:
        """(b,) nats, zeros where B is 1; equals `bounds.donsker_varadhan` on the whole matrix."""
        if self.num <= 1:
            return 0 * self.positive.mean(dim=1)
        return (self.positive - self.log_negatives + math.log(self.num - 1)).mean(dim=1)

    def f_divergence(self) -> Tensor:
        """(b,), no MI in nats; equals `bounds.f_divergence` on the whole matrix."""
        assert self.divergence is not None, "match(..., divergence=name) computes what it needs"
        assert self.negative is not None
        return (F_DIVERGENCES[self.divergence].positive(self.positive) - self.negative).mean(dim=1)

    def released_donsker_varadhan(self) -> Tensor:
        """(b,) nats, no bound; equals `bounds.released_donsker_varadhan` on the whole matrix."""
        return (self.positive - self.released_log_mean()).mean(dim=1)

    def released_log_mean(self) -> Tensor:
        """(b, P), the second term of the released Donsker-Varadhan: exp 0 is among the B - 1."""
        log_negatives = torch.logaddexp(self.log_negatives, torch.zeros_like(self.log_negatives))
        return log_negatives - math.log(max(self.num - 1, 1))

    def released_infonce(self) -> Tensor:
        """(b,), no MI in nats; equals `bounds.released_infonce` on the whole matrix."""
        own = self.positive.new_tensor(math.log(self.positive.shape[1]) - 10)
        negatives = torch.logaddexp(torch.logsumexp(self.log_negatives, dim=1, keepdim=True), own)
        return (self.positive - torch.logaddexp(self.positive, negatives)).mean(dim=1)

    def bound(self, name: str) -> Tensor:
        """The bound or objective of this name, as in `MIConfig.bound`: (b,)."""
        if name in F_DIVERGENCES:
            assert name == self.divergence, (
                f"match(..., divergence={name!r}) computes what it needs"
            )
            return self.f_divergence()
        return {
            "infonce": self.infonce,
            "dv": self.donsker_varadhan,
            "infonce-released": self.released_infonce,
            "dv-released": self.released_donsker_varadhan,
        }[name]()


def match(
    global_features: Tensor,
    local_features: Tensor,
    sizes: list[int],
    group: Collectives,
    *,
    divergence: str | None = None,
    score_memory: float = math.inf,
) -> Matching:
    """Scores all outputs of the global batch against all of its patterns.

    Args:
        global_features: (b, H), of the worker's own outputs.
        local_features: (b, H, P), of the worker's own patterns.
        sizes: how many samples each worker holds; they sum to B.
        group: the workers.
        divergence: name of an f-divergence; what it needs is computed, too.
        score_memory: MiB that a tensor of scores may take; larger ones are computed in parts of at
            least one column, exactly. None of them outlives its part then.
    Returns: the `Matching` of the worker's own samples; exact in value and, under the convention of
        `raymi.collectives`, in gradient.
    """
    num, first = sum(sizes), sum(sizes[: group.rank])
    if num <= 1:
        positive = (global_features[:, :, None] * local_features).sum(dim=1)
        nothing = torch.full_like(positive, -math.inf)
        return Matching(positive, nothing, num, divergence, torch.zeros_like(positive))
    outputs = group.gather(global_features, sizes)  # (B, H)
    rows = first + torch.arange(len(local_features), device=outputs.device)
    parts = _parts(local_features, num, score_memory)
    columns = []
    for features, own in zip(local_features.split(parts), rows.split(parts), strict=True):
        if len(local_features) <= parts:
            columns.append(_score(outputs, features, own, divergence))
        else:
            args = (outputs, features, own, divergence)
            columns.append(checkpoint(_score, *args, use_reentrant=False, preserve_rng_state=False))
    positives, log_sums, sums = zip(*columns, strict=True)
    own_rows = group.exchange(torch.logsumexp(torch.stack(log_sums), dim=0), sizes)  # (W, b, P)
    positive, log_negatives = torch.cat(positives), torch.logsumexp(own_rows, dim=0)
    if divergence is None:
        return Matching(positive, log_negatives, num)
    negative = group.exchange(torch.stack(sums).sum(dim=0), sizes).sum(dim=0) / (num - 1)
    return Matching(positive, log_negatives, num, divergence, negative)


def _parts(local_features: Tensor, num: int, score_memory: float) -> int:
    """How many columns are scored at once."""
    bytes_per_column = num * local_features.shape[2] * local_features.element_size()
    return int(max(1, min(len(local_features), score_memory * 2**20 // bytes_per_column)))


def _score(
    outputs: Tensor, features: Tensor, rows: Tensor, divergence: str | None
) -> tuple[Tensor, Tensor, Tensor]:
    """What c columns contribute: outputs (B, H) against features (c, H, P) of the samples `rows`.

    Returns: (c, P) scores of matching pairs; (B, P) logsumexp over the other pairs, -inf where
        there are none; (B, P) sum of the divergence's negative term over them.
    """
    scores = outputs @ features  # (c, B, P): column j, row i
    positive = scores[torch.arange(len(scores), device=scores.device), rows]
    own = (rows[:, None] == torch.arange(len(outputs), device=scores.device))[:, :, None]
    log_sum = torch.logsumexp(scores.masked_fill(own, -math.inf), dim=0)
    if divergence is None:
        return positive, log_sum, torch.zeros_like(log_sum)
    # masked on both sides: exp of an own score may overflow, and 0 * inf would be its gradient
    term = F_DIVERGENCES[divergence].negative(scores.masked_fill(own, 0.0)).masked_fill(own, 0.0)
    return positive, log_sum, term.sum(dim=0)
