"""Source of a network as one text that needs torch only, to load it without raymi."""

from __future__ import annotations

import ast
import importlib
import inspect
from collections.abc import Iterable, Iterator, Mapping
from typing import Any

from raymi.models.classifier import Classifier
from raymi.models.families import FAMILIES, LIBRARIES
from raymi.models.libraries import BUILDERS
from raymi.models.registry import net_arguments

_FUTURE = "from __future__ import annotations"


def classifier_source(architecture: Mapping[str, Any], imports: Iterable[str] = ()) -> str:
    """Returns code of a function `make_model()` that builds a classifier as `build_model` does.

    Mean and standard deviation are loaded with its weights.

    Args:
        architecture: see `raymi.models.architecture`. The module of a user's own network is
            imported, and must be there.
        imports: further statements, such as "import io".
    """
    name = architecture["name"]
    found = _Definitions()
    found.imports |= dict.fromkeys(imports)
    found.add(Classifier.__module__, Classifier.__name__)
    if name in FAMILIES:
        net = FAMILIES[name].net
        found.add(net.__module__, net.__name__)
        arguments = net_arguments(**architecture)
        made = f"{net.__name__}({_listed(arguments)})"
    elif name.partition(":")[0] in LIBRARIES:
        package, _, function = name.partition(":")
        builder = BUILDERS[package]
        found.add(builder.__module__, builder.__name__)
        sizes = _listed(_of(architecture, "num_classes", "image_size"))
        made = f"{builder.__name__}({function!r}, {sizes})"
    else:
        module, _, function = name.partition(":")
        found.imports[f"from {module} import {function}"] = None
        made = f"{function}({_listed(_of(architecture, 'num_classes', 'image_size'))})"
    return "\n\n\n".join(
        [
            "\n".join([_FUTURE, "", *sorted(found.imports)]),
            *found.definitions(),
            "def make_model() -> nn.Module:\n"
            '    """Images (B, 3, H, W), raw pixels in [0, 1], to logits (B, K)."""\n'
            f"    net = {made}\n"
            "    return Classifier(net, mean=(0.0, 0.0, 0.0), std=(1.0, 1.0, 1.0))",
        ]
    )


class _Definitions:
    """Definitions from raymi's modules and imports of other modules that a text needs."""

    def __init__(self) -> None:
        self.imports = dict.fromkeys(("import torch", "from torch import nn"))
        self._wanted: dict[str, set[str]] = {}  # names, by the module that defines them

    def add(self, module: str, name: str) -> None:
        """Adds a definition and, recursively, the definitions and imports of the names in it."""
        wanted = self._wanted.setdefault(module, set())
        if name in wanted:
            return
        defined, imported = _top_level(module)
        if name not in defined:
            origin, statement = imported[name]
            if origin.startswith("raymi."):
                self.add(origin, name)
            else:
                self.imports[statement] = None
            return
        wanted.add(name)
        for node in ast.walk(defined[name]):
            if isinstance(node, ast.Name) and node.id in {*defined, *imported}:
                self.add(module, node.id)

    def definitions(self) -> Iterator[str]:
        """Yields the texts of all definitions; a module's imports come before its own."""
        for module, names in reversed(self._wanted.items()):
            defined, _ = _top_level(module)
            text = inspect.getsource(importlib.import_module(module))
            for name, node in defined.items():
                if name in names:
                    yield ast.get_source_segment(text, node) or ""


def _top_level(module: str) -> tuple[dict[str, ast.stmt], dict[str, tuple[str, str]]]:
    """Returns a module's definitions by name, and (origin, import statement) of imported names."""
    tree = ast.parse(inspect.getsource(importlib.import_module(module)))
    defined: dict[str, ast.stmt] = {}
    imported: dict[str, tuple[str, str]] = {}
    for node in tree.body:
        if isinstance(node, (ast.ClassDef, ast.FunctionDef)):
            defined[node.name] = node
        elif isinstance(node, ast.Assign):
            defined |= {one.id: node for one in node.targets if isinstance(one, ast.Name)}
        elif isinstance(node, (ast.Import, ast.ImportFrom)):
            for alias in node.names:
                origin = getattr(node, "module", None) or alias.name
                one = [ast.alias(alias.name, alias.asname)]
                single = (
                    ast.ImportFrom(node.module, one, 0)
                    if isinstance(node, ast.ImportFrom)
                    else ast.Import(one)
                )
                imported[alias.asname or alias.name] = (origin, ast.unparse(single))
    return defined, imported


def _of(tree: Mapping[str, Any], *names: str) -> dict[str, Any]:
    return {name: tree[name] for name in names}


def _listed(arguments: Mapping[str, Any]) -> str:
    return ", ".join(f"{name}={value!r}" for name, value in arguments.items())
