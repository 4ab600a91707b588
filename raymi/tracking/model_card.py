"""Model card: description, usage, accuracies, and signs of false robustness."""

from __future__ import annotations

import tempfile
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from raymi.config import Config
from raymi.evaluation.protocol import parse_threat
from raymi.formatting import as_typed, markdown_table, number_text, threat_text
from raymi.selection.candidate import Candidate
from raymi.tracking import store
from raymi.tracking.candidates import candidates_of_model
from raymi.tracking.logged import read_config, read_provenance
from raymi.tracking.registry import versions_of_model

CARD = "MODEL_CARD.md"
"""Artifact of a logged model."""


def write_card(client: Any, model_id: str) -> None:
    """Updates the card of a model: its artifact, and the description of its registered versions.

    Does nothing for models that raymi did not log.

    Raises:
        Exception: any error of MLflow where the store does not answer.
    """
    import mlflow

    model = client.get_logged_model(model_id)
    if not any(file.path == "MLmodel" for file in client.list_logged_model_artifacts(model_id)):
        return  # MLflow has only its accuracies
    with tempfile.TemporaryDirectory() as folder, store.use_store(client.tracking_uri):
        config = read_config(client, model.source_run_id, Path(folder))
        metadata = mlflow.models.get_model_info(f"models:/{model_id}").metadata or {}
        if config is None or "architecture" not in metadata:
            return
        run = client.get_run(model.source_run_id)
        versions = versions_of_model(client, model_id, model.source_run_id)
        names = [f"models:/{one.name}/{one.version}" for one in versions]
        facts = read_provenance(client, model.source_run_id, Path(folder))
        text = model_card(model, run, config, facts, metadata, [*names, f"models:/{model_id}"])
        card = Path(folder) / CARD
        card.write_text(text)
        client.log_model_artifact(model_id, str(card))
    for one in versions:
        client.update_model_version(one.name, one.version, store.as_tag(text))


def model_card(
    model: Any,
    run: Any,
    config: Config,
    facts: Mapping[str, Any],
    metadata: Mapping[str, Any],
    addresses: Sequence[str],
) -> str:
    """Returns the card as Markdown.

    Args:
        model: MLflow's entity.
        run: MLflow's entity of the run that trained it.
        config: of the run.
        facts: provenance of the run.
        metadata: of the model.
        addresses: of the model, preferred one first.
    """
    threat = threat_text(config.attack.norm, config.attack.eps)
    measured = list(candidates_of_model(model, run))
    built = metadata["architecture"]
    size, classes = built["image_size"], metadata["classes"]
    shown = ", ".join(classes[:20]) + (", ..." if len(classes) > 20 else "")
    network = built["name"]
    if built["width"] is not None:
        network += f", width {as_typed(built['width'])}, depth {built['depth']}"
    return "\n\n".join(
        [  # lists of versions show the first line
            f"{run.info.run_name}/{model.name}: an image classifier ({network}) trained by raymi "
            f"{facts.get('version', '')} (recipe {facts.get('recipe', 'unknown')}) on "
            f"{config.data.name} to withstand perturbations in {threat}.",
            f"It maps images (B, 3, {size}, {size}), float32 pixels in [0, 1], to logits "
            f"(B, {len(classes)}); normalisation is inside. Classes: {shown}.",
            "## Use",
            _usage(addresses[0], size),
            "## Accuracy",
            _accuracies(measured),
            "## Signs of false robustness",
            "\n".join(_checks(model, addresses[-1])),
            "## Limits",
            f"Accuracies hold for images like those of {config.data.name} and for the threats in "
            "the table, not for other perturbations. The best epoch was chosen on validation "
            "images that were held out from training, not on test images." + _shared_images(facts),
            "## Provenance",
            "\n".join(_origin(facts, run)),
        ]
    )


def _shared_images(facts: Mapping[str, Any]) -> str:
    """Returns the warning about images that splits share; empty without any."""
    return f"\n\n**Warning:** {facts['duplicates']}." if "duplicates" in facts else ""


def _usage(address: str, size: int) -> str:
    return f"""```python
import mlflow, torch

model = mlflow.pytorch.load_model("{address}")  # without raymi, and without pickle
images = torch.rand(8, 3, {size}, {size}, requires_grad=True)
logits = model(images)  # gradients flow to the images
```

It is a program that torch exported, without train() and eval(): wrap it in a module for code that
calls them. The weights alone are in `extra_files/`, in safetensors. As a service:
`mlflow models serve -m {address} --env-manager local`, which takes
`{{"inputs": [...]}}` at `/invocations`."""


def _accuracies(measured: Sequence[Candidate]) -> str:
    rows = [("images", "threat", "attack", "accuracy (95% interval)")]
    for one in measured:
        images = f"{one.protocol.num} of {one.protocol.data}"
        threat = threat_text(*parse_threat(one.protocol.threat))
        for name, number in one.numbers.items():
            rows.append((images, threat, name, number_text(number)))
    return markdown_table(rows) if len(rows) > 1 else "Not measured yet."


def _checks(model: Any, address: str) -> Iterator[str]:
    checks = {key: text for key, text in model.tags.items() if "/check/" in key}
    for key, text in sorted(checks.items()):
        prefix, _, check = key.partition("/check/")
        yield f"- {check} ({prefix.removeprefix('eval/')}): {text}"
    if not checks:
        yield f"Not checked yet: run `python -m raymi.evaluate model={address}`."


def _origin(facts: Mapping[str, Any], run: Any) -> Iterator[str]:
    origin = {
        "command": facts.get("command"),
        "MLflow run": run.info.run_id,
        "git commit": facts.get("git_commit"),
        "machine": facts.get("machine"),
        "versions": ", ".join(
            f"{name} {facts[name]}"
            for name in ("python", "torch", "ray", "mlflow")
            if name in facts
        ),
    }
    origin |= {
        f"images, {one.dataset.name}": f"checksum {one.dataset.digest}"
        for one in run.inputs.dataset_inputs
    }
    for name, text in origin.items():
        if text:
            yield f"- {name}: `{text}`"
