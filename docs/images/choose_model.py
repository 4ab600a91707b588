"""Makes the pictures of docs/choosing-a-model.md from a store, with MLflow's UI in Chromium.

    python docs/images/choose_model.py sqlite:///mlflow.db RUN_ID

The run is of the experiment `raymi`, and its chosen model is registered.
"""

from __future__ import annotations

import subprocess
import sys
import time
from contextlib import suppress
from pathlib import Path
from urllib.request import urlopen

import mlflow
from PIL import Image

PORT = 5078
WIDTH = 2200
HERE = Path(__file__).parent


def main(uri: str, run_id: str) -> None:
    """Takes a picture of the runs, of a run and of its registered version.

    Args:
        uri: of the store.
        run_id: of the run.
    """
    client = mlflow.MlflowClient(uri)
    experiment = client.get_run(run_id).info.experiment_id
    (version, *_) = client.search_model_versions(f"run_id = '{run_id}'")
    pages = {
        "run": (f"experiments/{experiment}/runs?viewStateShareKey=raymi-best", 560),
        "results": (f"experiments/{experiment}/runs/{run_id}", 760),
        "card": (f"models/{version.name}/versions/{version.version}", 1000),
    }
    words = ["mlflow", "ui", "--backend-store-uri", uri, "--port", str(PORT), "--workers", "1"]
    with subprocess.Popen(words) as server:
        try:
            _wait()
            for name, (page, height) in pages.items():
                _take(page, HERE / f"choose-{name}.png", height)
        finally:
            server.terminate()


def _wait() -> None:
    deadline = time.monotonic() + 60
    while time.monotonic() < deadline:
        with suppress(OSError), urlopen(f"http://127.0.0.1:{PORT}/health"):
            return
        time.sleep(0.5)
    raise SystemExit("MLflow's UI does not start")


def _take(page: str, file: Path, height: int) -> None:
    """Saves a page without the panels at its sides."""
    chromium = ["chromium", "--headless", "--no-sandbox", "--hide-scrollbars"]
    size = [f"--window-size={WIDTH},{height}", "--virtual-time-budget=15000"]
    address = f"http://127.0.0.1:{PORT}/#/{page}"
    subprocess.run([*chromium, *size, f"--screenshot={file}", address], check=True)
    picture = Image.open(file).crop((200, 0, 1635, height))
    picture.convert("P", palette=Image.Palette.ADAPTIVE, colors=64).save(file, optimize=True)


if __name__ == "__main__":
    main(*sys.argv[1:])
