"""Calls on Ray: classes of a script, interruption, MLflow."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest
from raymi_command import environment

SCRIPT = '''
"""Defines its classes in __main__, as a notebook does."""
import signal, sys
import raymi
from own_digits import QUICK, digits
from torch import nn

class Net(nn.Module):
    def __init__(self, num_classes, image_size):
        super().__init__()
        self.layers = nn.Sequential(nn.Flatten(), nn.Linear(3 * image_size**2, num_classes))
    def forward(self, x):
        return self.layers(x)

class Interrupt:
    interrupts = True
    def event(self, event):
        if event["kind"] == "epoch" and self.interrupts:
            self.interrupts = False
            signal.raise_signal(signal.SIGINT)

def fit(model):
    settings = {**QUICK, "optim.epochs": 60, "tracking.enabled": True}
    return raymi.fit("quickstart", model=model, train=digits(), workers=2, name="mine",
                     settings=settings, callbacks=[interrupt])

interrupt = Interrupt()
try:
    fit(Net)
except KeyboardInterrupt as stop:
    print("interrupted:", stop)
from raymi.runs.record import read_record
from raymi.runs.run_folder import RunFolder
from pathlib import Path
print("epochs:", len(read_record(RunFolder(Path("runs/mine"))).phases["classifier"]) < 60)
result = fit(Net)
print("finished:", sorted(result.metrics), type(result.classifier.net).__name__)
from raymi.commands.evaluate.run import NoCallback
here, on_ray = (
    raymi.robust_accuracy(result.classifier, digits(60, start=900), eps=0.1, suite="quick",
                          checks=0, workers=workers, callback=NoCallback())
    for workers in (0, 2)
)
print("attacked:", here.accuracies == on_ray.accuracies, here.attack)
import mlflow
mlflow.set_tracking_uri("sqlite:///mlflow.db")
(run,) = mlflow.search_runs(experiment_names=["raymi"], output_format="list")
print("tracked:", run.info.status, run.data.tags["mlflow.source.name"])
class Net(Net):
    def forward(self, x):
        return self.layers(x) * 2
try:
    fit(Net)
except raymi.UserError as error:
    print("refused:", error)
'''


@pytest.mark.ray
@pytest.mark.slow
def test_class_of_a_script_is_trained_interrupted_and_continued(tmp_path: Path) -> None:
    tests = str(Path(__file__).parents[1])
    (tmp_path / "script.py").write_text(SCRIPT)
    done = subprocess.run(
        [sys.executable, "script.py"],
        cwd=tmp_path,
        env=environment(PYTHONPATH=f"{Path(tests).parent}:{tests}"),
        capture_output=True,
        text=True,
        timeout=600,
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
