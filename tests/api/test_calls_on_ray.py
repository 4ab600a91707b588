"""Calls on Ray: classes of a script, interruption, MLflow."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest
from ray_head import Head
from raymi_command import TIMEOUT, environment

SCRIPT = '''
"""Defines its classes in __main__, as a notebook does."""
import signal
import time
from pathlib import Path

import mlflow
from torch import nn
from own_digits import QUICK, digits

import raymi
from raymi.evaluation.callback import EvaluationCallback
from raymi.losses import AdversarialLoss
from raymi.runs.record import read_record
from raymi.runs.run_folder import RunFolder

released = Path("released").absolute()

class Net(nn.Module):
    """Slow until the file exists."""
    def __init__(self, num_classes, image_size):
        super().__init__()
        self.layers = nn.Sequential(nn.Flatten(), nn.Linear(3 * image_size**2, num_classes))
    def forward(self, x):
        time.sleep(0 if released.exists() else 0.03)
        return self.layers(x)

class Squared(AdversarialLoss):
    title = "Squared"
    class Settings(AdversarialLoss.Settings):
        scale: float = 1.0
    def __call__(self, logits, logits_adv, y, shard):
        target = nn.functional.one_hot(y, logits_adv.shape[1])
        apart = (logits_adv.softmax(dim=1) - target).square().sum(dim=1)
        return self.settings.scale * shard.mean(apart)

class Interrupt:
    def event(self, event):
        if event["kind"] == "epoch" and not released.exists():
            signal.raise_signal(signal.SIGINT)

def fit(loss):
    settings = {**QUICK, "optim.epochs": 4, "tracking.enabled": True}
    return raymi.fit("quickstart", model=Net, loss=loss, train=digits(), workers=2, name="mine",
                     settings=settings, callbacks=[Interrupt()])

try:
    fit(Squared(scale=2.0))
except KeyboardInterrupt as stop:
    print("interrupted:", stop)
print("epochs:", len(read_record(RunFolder(Path("runs/mine"))).phases["classifier"]) < 4)
released.touch()
result = fit(Squared(scale=2.0))
print("finished:", sorted(result.metrics), type(result.classifier.net).__name__)
here, on_ray = (
    raymi.robust_accuracy(result.classifier, digits(20, start=900), eps=0.1, suite="quick",
                          checks=0, workers=workers, callback=EvaluationCallback())
    for workers in (0, 2)
)
print("attacked:", here.accuracies == on_ray.accuracies, here.attack)
mlflow.set_tracking_uri("sqlite:///mlflow.db")
(run,) = mlflow.search_runs(experiment_names=["raymi"], output_format="list")
print("tracked:", run.info.status, run.data.tags["mlflow.source.name"])
try:
    fit(Squared)
except raymi.UserError as error:
    print("refused:", error)
'''


@pytest.mark.ray
@pytest.mark.slow
def test_classes_of_a_script_are_trained_interrupted_and_continued(
    joined_ray: Head, tmp_path: Path
) -> None:
    tests = str(Path(__file__).parents[1])
    (tmp_path / "script.py").write_text(SCRIPT)
    done = subprocess.run(
        [sys.executable, "script.py"],
        cwd=tmp_path,
        env=environment(PYTHONPATH=f"{Path(tests).parent}:{tests}", **joined_ray.env),
        capture_output=True,
        text=True,
        timeout=TIMEOUT,
    )
    assert done.returncode == 0, done.stderr
    said = dict(line.split(": ", 1) for line in done.stdout.splitlines())
    assert said["interrupted"].endswith("the same call with name='mine' continues it")
    assert said["epochs"] == "True"
    assert said["finished"] == (
        "['test/clean_acc', 'test/pgd1_acc', 'val/clean_acc', 'val/robust_acc'] Net"
    )
    assert said["attacked"] == "True pgd-20"
    assert said["tracked"] == "FINISHED raymi.fit('quickstart', name='mine', ...)"
    assert said["refused"].startswith("the run mine in ")
