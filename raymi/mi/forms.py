"""The named forms of the MI objective: what each sets, where the paper leaves a choice or is
fragile.

`bounded` is well-posed by construction: no term can be pushed without limit. `paper` is Eq. 4-9 of
Zhou et al. (ICML 2022) as printed, `released` what their code computes.

Measured warning: the contrast of Eq. 5 is unbounded, and scores of two LayerNormed vectors reach
+-H. On digits (recipe quickstart-paper, ten seeds) the estimates of I_N(h(x)) fell as low as -240
nats, in the classifier's first epoch the MI gradient at the logits was 4 to 36 times the
adversarial one, and accuracy stayed at chance in all ten runs. `released` trains, and lost 6 points
of robust accuracy against AT there.
"""

from __future__ import annotations

from typing import Any

FORMS: dict[str, dict[str, Any]] = {
    "bounded": {
        "balance": 0.2,
        "bound": "infonce",
        "score": "cosine",
        "objective": "mim",
        "samples": "all",
        "difference": 1.0,
        "cosine": 0.0,
        "clamp": True,
        "clip_contrast": True,
    },
    "paper": {
        "weight": 5.0,
        "bound": "dv",
        "score": "dot",
        "objective": "contrast",
        "samples": "selected",
        "difference": 0.1,
        "cosine": 1.0,
        "clamp": False,
        "clip_contrast": False,
        "hidden": 2048,
    },
    "released": {
        "weight": 5.0,
        "bound": "dv-released",
        "score": "dot",
        "objective": "released",
        "samples": "selected-released",
        "difference": 0.0,
        "cosine": 1.0,
        "clamp": False,
        "clip_contrast": False,
        "hidden": 2048,
    },
    "wmim": {
        "balance": 0.2,
        "bound": "infonce",
        "score": "cosine",
        "objective": "mim",
        "samples": "all",
        "natural_pattern": "adversarial",
        "difference": 1.0,
        "cosine": 0.0,
        "clamp": True,
        "clip_contrast": True,
        "adversarial": False,
    },
    "random": {
        "balance": 0.2,
        "gradient": "random",
    },
}
