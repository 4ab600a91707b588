"""What a bound needs of the scores of a global batch, computed where the local features are.

The local features (b, H, P) are large, the global ones (b, H) small. So each worker gathers the
global features of all B samples, scores them against its own patterns, and contributes a partial
sum over its own columns; the sums are combined over workers. A worker communicates O(B (H + P))
numbers, never the features of locations.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from raymi.collectives import Collectives


@dataclass(frozen=True)
class Matching:
    """Scores of a worker's own b samples, reduced over the global batch of B.

    positive: (b, P), T[i, i, p].
    log_negatives: (b, P), logsumexp of T[i, j, p] over j != i, i's own pattern truly left out.
    num: B.
    divergence: (b, P), mean of softplus(T[i, j, p]) - log 2 over j != i; only where asked for.
    """

    positive: Tensor
    log_negatives: Tensor
    num: int
    divergence: Tensor | None = None

    def infonce(self) -> Tensor:
        """(b,) nats, each at most log B; equals `bounds.infonce` on the whole matrix."""
        log_candidates = torch.logaddexp(self.positive, self.log_negatives)
        return (self.positive - log_candidates + math.log(max(self.num, 1))).mean(dim=1)

    def donsker_varadhan(self) -> Tensor:
        """(b,) nats, zeros where B is 1; equals `bounds.donsker_varadhan` on the whole matrix."""
        if self.num <= 1:
            return 0 * self.positive.mean(dim=1)
        return (self.positive - self.log_negatives + math.log(self.num - 1)).mean(dim=1)

    def jensen_shannon(self) -> Tensor:
        """(b,), no MI in nats; equals `bounds.jensen_shannon` on the whole matrix."""
        assert self.divergence is not None, "match(..., divergence=True) computes what JSD needs"
        positive = math.log(2) - F.softplus(-self.positive)
        return (positive - self.divergence).mean(dim=1)

    def released_donsker_varadhan(self) -> Tensor:
        """(b,) nats as the released code has it: the positive is among the negatives, with score 0.

        So it is no bound, and changes when a constant is added to all scores.
        """
        # mean_p T_iip - log (1/(B-1)) (exp 0 + sum_{j != i} exp T_ijp)
        log_negatives = torch.logaddexp(self.log_negatives, torch.zeros_like(self.log_negatives))
        return (self.positive - log_negatives + math.log(max(self.num - 1, 1))).mean(dim=1)

    def bound(self, name: str) -> Tensor:
        """The bound called "infonce", "dv", "jsd" or "dv-released": (b,)."""
        return {
            "infonce": self.infonce,
            "dv": self.donsker_varadhan,
            "jsd": self.jensen_shannon,
            "dv-released": self.released_donsker_varadhan,
        }[name]()


def match(
    global_features: Tensor,
    local_features: Tensor,
    sizes: list[int],
    group: Collectives,
    *,
    divergence: bool = False,
) -> Matching:
    """Scores all outputs of the global batch against all of its patterns.

    Args:
        global_features: (b, H), of the worker's own outputs.
        local_features: (b, H, P), of the worker's own patterns.
        sizes: how many samples each worker holds; they sum to B.
        group: the workers.
        divergence: compute what the Jensen-Shannon objective needs, too.
    Returns: the `Matching` of the worker's own samples; exact in value and, under the convention of
        `raymi.collectives`, in gradient.
    """
    num, first = sum(sizes), sum(sizes[: group.rank])
    outputs = group.gather(global_features, sizes)  # (B, H)
    scores = outputs @ local_features  # (b, B, P): column j, row i
    columns = torch.arange(len(scores), device=scores.device)
    rows = first + columns
    positive = scores[columns, rows]  # (b, P)
    if num <= 1:
        nothing = torch.zeros_like(positive) if divergence else None
        return Matching(positive, torch.full_like(positive, -math.inf), num, nothing)
    matched = rows[:, None] == torch.arange(num, device=scores.device)  # (b, B)
    negatives = scores.masked_fill(matched[:, :, None], -math.inf)
    # finite also for rows whose negatives are all with other workers, and for a worker without any
    floor = scores.new_full((1, num, scores.shape[2]), torch.finfo(scores.dtype).min)
    largest = group.max(torch.cat([negatives.detach(), floor]).amax(dim=0))  # (B, P)
    total = group.sum(torch.exp(negatives - largest).sum(dim=0))  # (B, P)
    log_negatives = (torch.log(total) + largest)[rows]
    if not divergence:
        return Matching(positive, log_negatives, num)
    apart = (F.softplus(scores) - math.log(2)).masked_fill(matched[:, :, None], 0.0)
    mean = group.sum(apart.sum(dim=0))[rows] / (num - 1)  # (b, P)
    return Matching(positive, log_negatives, num, mean)
