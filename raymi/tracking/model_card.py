"""What comes with a model: what it is, how it is used, what was measured of it, and what is
doubtful about that."""

from __future__ import annotations

import tempfile
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from raymi.config import Config
from raymi.formatting import as_typed, markdown_table, number_text, threat_text
from raymi.selection.candidate import Candidate
from raymi.tracking import store
from raymi.tracking.candidates import of_model
from raymi.tracking.logged import config_of
from raymi.tracking.metric_names import threat_of
from raymi.tracking.registry import versions_of

CARD = "MODEL_CARD.md"
"""Name of the card among the artifacts of a logged model."""


def write_card(client: Any, model_id: str) -> None:
    """Writes the card of a model that raymi logged, as MLflow knows it by now: among the model's
    artifacts, and as the description of its registered versions. Of other models, nothing.

    Raises: whatever MLflow raises where the store does not answer.
    """
    import mlflow

    model = client.get_logged_model(model_id)
    if not any(file.path == "MLmodel" for file in client.list_logged_model_artifacts(model_id)):
        return  # only its numbers are in MLflow
    with tempfile.TemporaryDirectory() as place, store.current(client.tracking_uri):
        config = config_of(client, model.source_run_id, Path(place))
        metadata = mlflow.models.get_model_info(f"models:/{model_id}").metadata or {}
        if config is None or "architecture" not in metadata:
            return
        run = client.get_run(model.source_run_id)
        versions = versions_of(client, model_id, model.source_run_id)
        names = [f"models:/{one.name}/{one.version}" for one in versions]
        text = model_card(model, run, config, metadata, [*names, f"models:/{model_id}"])
        card = Path(place) / CARD
        card.write_text(text)
        client.log_model_artifact(model_id, str(card))
    for one in versions:
        client.update_model_version(one.name, one.version, store.as_tag(text))


def model_card(
    model: Any, run: Any, config: Config, metadata: Mapping[str, Any], addresses: Sequence[str]
) -> str:
    """The card, as Markdown.

    Args: model and run, MLflow's entities; config, of the run; metadata, of the model;
        addresses under which it is found, the best one first.
    """
    threat = threat_text(config.attack.norm, config.attack.eps)
    measured = list(of_model(model, run))
    built = metadata["architecture"]
    size, classes = built["image_size"], metadata["classes"]
    facts = {key.removeprefix("raymi."): text for key, text in run.data.tags.items()}
    shown = ", ".join(classes[:20]) + (", ..." if len(classes) > 20 else "")
    network = built["name"]
    if built["width"] is not None:
        network += f", width {as_typed(built['width'])}, depth {built['depth']}"
    return "\n\n".join(
        [  # the first line is what lists of versions show of it
            f"{run.info.run_name}/{model.name}: an image classifier ({network}) trained by raymi "
            f"{facts.get('version', '')} (recipe {facts.get('recipe', 'unknown')}) on "
            f"{config.data.name} to withstand perturbations in {threat}.",
            f"It maps images (B, 3, {size}, {size}), float32 pixels in [0, 1], to logits "
            f"(B, {len(classes)}); normalisation is inside. Classes: {shown}.",
            "## Use",
            _usage(addresses[0], size),
            "## Accuracy",
            *_accuracies(measured),
            "## Signs of false robustness",
            "\n".join(_checks(model, addresses[-1])),
            "## Limits",
            f"Accuracies hold for images like those of {config.data.name} and for the threats in "
            "the table; they say nothing of other perturbations. The best epoch was chosen on "
            "validation images that were held out from training, not on test images."
            + _shared_images(facts),
            "## Where it comes from",
            "\n".join(_origin(facts, run)),
        ]
    )


def _shared_images(facts: Mapping[str, str]) -> str:
    """Returns the warning about images that splits share, to be appended; empty without any."""
    return f"\n\n**Warning:** {facts['duplicates']}." if "duplicates" in facts else ""


def _usage(address: str, size: int) -> str:
    return f"""```python
import mlflow, torch

model = mlflow.pytorch.load_model("{address}")  # without raymi, and without pickle
images = torch.rand(8, 3, {size}, {size}, requires_grad=True)
logits = model(images)  # gradients flow to the images
```

It is a program that torch exported: it has no train() and eval(), so what calls them needs a module
around it. The weights alone are in `extra_files/`, in safetensors. As a service:
`mlflow models serve -m {address} --env-manager local`, which takes
`{{"inputs": [...]}}` at `/invocations`."""


def _accuracies(measured: Sequence[Candidate]) -> Iterator[str]:
    rows = [("images", "threat", "attack", "accuracy (95% interval)")]
    for one in measured:
        protocol = one.protocol
        images = f"{protocol.num} of {protocol.data}"
        for name, number in one.numbers.items():
            threat = threat_text(*threat_of(protocol.threat))
            rows.append((images, threat, name, number_text(number)))
    yield markdown_table(rows) if len(rows) > 1 else "Nothing was measured yet."


def _checks(model: Any, address: str) -> Iterator[str]:
    said = {key: text for key, text in model.tags.items() if "/check/" in key}
    for key, text in sorted(said.items()):
        prefix, _, check = key.partition("/check/")
        yield f"- {check} ({prefix.removeprefix('eval/')}): {text}"
    if not said:
        yield f"Not looked for yet: `python -m raymi.evaluate model={address}` does."


def _origin(facts: Mapping[str, str], run: Any) -> Iterator[str]:
    told = {
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
    told |= {
        f"images, {one.dataset.name}": f"checksum {one.dataset.digest}"
        for one in run.inputs.dataset_inputs
    }
    for name, text in told.items():
        if text:
            yield f"- {name}: `{text}`"
