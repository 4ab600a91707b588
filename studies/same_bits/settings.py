"""Training runs of a second whose results two versions of raymi must share."""

from __future__ import annotations

from typing import Any

TINY: dict[str, Any] = {
    "data.name": "digits",
    "data.limit": 90,
    "data.flip": False,
    "data.crop_padding": 1,
    "model.name": "small-cnn",
    "model.width": 0.5,
    "model.depth": 4,
    "attack.eps": 0.2,
    "attack.steps": 2,
    "mi.hidden": 16,
    "mi.base_width": 4,
    "mi.depth": 1,
    "optim.epochs": 1,
    "optim.batch_size": 31,
    "optim.lr": 0.05,
    "optim.schedule": "onecycle",
    "validation.steps": 1,
    "probe.steps": 0,
    "tracking.enabled": False,
    "tracking.log_every": 1,
}
"""81 digits of 8x8 pixels in steps of 31, 31 and 19, uneven for 2 and 3 workers."""

AWP = {"optim.awp": 0.02, "optim.awp_warmup": 0}
EMA = {"optim.ema": 0.9}
NO_MI = {"mi.weight": 0}
PAPER = {"mi.form": "paper", "mi.hidden": 16, "mi.samples": "all"}
TRADES = {"loss.base": "trades"}
MART = {"loss.base": "mart"}
DROPOUT = {"model.name": "studies.same_bits.network:dropout_net", "model.width": None} | {
    "model.depth": None
}

SETTINGS: dict[str, dict[str, Any]] = {
    "AT": NO_MI,
    "TRADES": NO_MI | TRADES,
    "MART": NO_MI | MART,
    "AT, label smoothing": NO_MI | {"loss.label_smoothing": 0.1},
    "AT, mix": NO_MI | {"loss.batchnorm": "mix"},
    "bounded": {},
    "bounded, DV": {"mi.bound": "dv"},
    "bounded, contrast": {"mi.objective": "contrast", "mi.samples": "selected"},
    "paper": PAPER,
    "paper, as printed": {"mi.form": "paper", "mi.hidden": 16},
    "released": {"mi.form": "released", "mi.hidden": 16, "loss.batchnorm": "released"},
    "wmim": {"mi.form": "wmim"},
    "random": {"mi.form": "random"},
    "random on TRADES": {"mi.form": "random"} | TRADES,
    "NAMID_T": TRADES,
    "NAMID_M": MART,
    "cosine": {"mi.cosine": 1.0, "mi.weight": 2.0},
    "AWP": AWP,
    "AWP on TRADES": AWP | TRADES,
    "AWP on TRADES, dropout": AWP | TRADES | DROPOUT,
    "EMA": EMA,
    "micro-batch": {"scaling.micro_batch": 7},
    "micro-batch, AWP": {"scaling.micro_batch": 7} | AWP | MART,
    "local negatives": {"mi.negatives": "local"},
    "folded BatchNorm, bf16": {"scaling.fold_batchnorm": True, "scaling.precision": "bf16"},
    "staged": {"mi.schedule": "staged"} | EMA,
    "stopped and resumed": {"checkpoint.every_steps": 1},
}
"""Settings by name, laid over `TINY`; the last one is stopped after two steps and resumed."""

STOPPED = "stopped and resumed"
