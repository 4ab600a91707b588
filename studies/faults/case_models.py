"""Malformed weights, networks and search spaces."""

from __future__ import annotations

import io
import random
from pathlib import Path

import torch
from safetensors.torch import save as safetensors_bytes

from studies.faults.case import Case
from studies.faults.setting import TINY


def bad_weights(rng: random.Random) -> Case:
    """A file of weights that is broken or does not fit."""
    good = torch.nn.Linear(192, 10).state_dict()
    state = {f"1.{key}": value for key, value in good.items()}
    content = safetensors_bytes(state)

    def saved(tree: object) -> bytes:
        file = io.BytesIO()
        torch.save(tree, file)
        return file.getvalue()

    other = {"1.weight": torch.zeros(10, 191), "1.bias": torch.zeros(10)}
    odd = {**state, "1.weight": state["1.weight"] * torch.nan}
    kind, suffix, data = rng.choice(
        (
            ("cut", "safetensors", content[: rng.randrange(len(content))]),
            ("cut", "pt", saved(state)[: rng.randrange(1000)]),
            ("header", "safetensors", rng.randbytes(8) + content[8:]),
            ("empty", rng.choice(("safetensors", "pt", "pth", "pt2")), b""),
            ("text", rng.choice(("safetensors", "pt", "pth", "pt2")), b"hello"),
            ("other shapes", "pt", saved(other)),
            ("keys", "pt", saved({"w": torch.zeros(3)})),
            ("missing keys", "pt", saved({"1.bias": state["1.bias"]})),
            ("NaN", "pt", saved(odd)),
            ("a list", "pt", saved([1, 2])),
            ("a number", "pt", saved(3)),
            ("nothing", "pt", saved({})),
            ("a tensor", "pt", saved(torch.zeros(3))),
            ("nested", "pt", saved({"model": {"a": 1}})),
            ("code", "pt", saved({"x": Path("y")})),
            ("suffix", "bin", saved(state)),
        )
    )
    file = f"w.{suffix}"
    command = rng.choice(("evaluate", "evaluate", "export"))
    words = (f"model={file}", *(("workers=1", *TINY) if command == "evaluate" else ()))
    return Case("weights", command, words, f"{kind} ({suffix})", {file: data})


_FORWARD = {
    "tuple": "return (self.fc(x.flatten(1)),)",
    "dict": "return {'logits': self.fc(x.flatten(1))}",
    "tuple in train mode": "z = self.fc(x.flatten(1)); return (z, z) if self.training else z",
    "other classes": "return self.fc(x.flatten(1))[:, :-1]",
    "one axis": "return self.fc(x.flatten(1)).sum(1)",
    "NaN": "return self.fc(x.flatten(1)) * float('nan')",
    "no gradient to images": "return self.fc(x.detach().flatten(1))",
    "no gradient": "return self.fc(x.flatten(1)).detach()",
    "integers": "return self.fc(x.flatten(1)).round().long()",
    "no parameters used": "return x.flatten(1)[:, :self.fc.out_features]",
    "changes its input": "return self.fc(x.mul_(0.5).flatten(1))",
    "changes its input by .data": "x.data.clamp_(0.2, 0.8); return self.fc(x.flatten(1))",
    "one batch size": "return self.fc(x.reshape(2, -1))",
    "grows its buffer": "self.b = torch.zeros(len(self.b) + 1); return self.fc(x.flatten(1))",
    "raises": "raise RuntimeError('[/] no')",
}
_MODULE = {
    "syntax error": "def make(:",
    "import error": "import no_such_module",
    "exits": "import sys; sys.exit(3)",
    "no function": "make = 1",
    "no arguments": "def make(): return Net(10, 8)",
    "raises when made": "def make(num_classes, image_size): raise RuntimeError('[/] no')",
    "None": "def make(num_classes, image_size): return None",
    "a function": "def make(num_classes, image_size): return lambda x: x",
    "a class": "def make(num_classes, image_size): return Net",
    "extra state": "Net.get_extra_state = lambda self: {'n': object()}",
}
_NET = """
import torch
from torch import nn

class Net(nn.Module):
    def __init__(self, num_classes, image_size):
        super().__init__()
        self.fc = nn.Linear(3 * image_size**2, num_classes)
        self.register_buffer("b", torch.zeros(1))

    def forward(self, x):
        FORWARD

def make(num_classes, image_size):
    return Net(num_classes, image_size)

"""


def bad_network(rng: random.Random) -> Case:
    """Makes a network that cannot be trained."""
    kind = rng.choice([*_FORWARD, *_MODULE])
    usual = "return self.fc(x.flatten(1))"
    text = _NET.replace("FORWARD", _FORWARD.get(kind, usual)) + _MODULE.get(kind, "")
    settings = tuple(word for word in TINY if not word.startswith("model."))
    words = ("name=x", "model.name=net:make", "model.width=none", "model.depth=none", *settings)
    # normalisation makes a copy, which a network may change
    return Case(
        "network", "standalone", words, kind, {"net.py": text.encode()}, "its input" not in kind
    )


_SPACE = b"""description = "rates"
[parameters."optim.lr"]
log = [0.01, 0.1]
[parameters."mi.hidden"]
choice = [16, 32]
[tune]
trials = 2
"""


def bad_space(rng: random.Random) -> Case:
    """A malformed search space."""
    text = _SPACE
    kind, content = rng.choice(
        (
            ("empty", b""),
            ("no TOML", b"]["),
            ("table", text.replace(b"[tune]", b"[tunes]")),
            ("table", text.replace(b"parameters", b"parameter")),
            ("binary", rng.randbytes(99)),
            ("key", text.replace(b"optim.lr", b"optim.rl")),
            ("cut", text[: rng.randrange(20, 60)]),
            ("bounds", text.replace(b"0.01, 0.1", b"0.1, 0.01")),
            ("key", text.replace(b"log", b"lgo")),
            ("bounds", text.replace(b"0.01", b"0")),
            ("bounds", text.replace(b"0.01", b"nan")),
            ("type", text.replace(b"[0.01, 0.1]", b'"x"')),
            ("type", text.replace(b"[16, 32]", b"[]")),
            ("value", text.replace(b"16", b"-16")),
            ("value", text.replace(b"16", b"1" + b"0" * 23)),
            ("value", text.replace(b"trials = 2", b"trials = 0")),
            ("refused key", text.replace(b"optim.lr", b"attack.eps")),
            ("twice", text + b'[parameters."optim.lr"]\nlog = [0.1, 1.0]\n'),
        )
    )
    words = ("space=mine.toml", "recipe=quickstart", "name=s")
    return Case("search space", "tune", words, kind, {"mine.toml": content})
