"""Folder of a run: paths of its files, and access to its configuration."""

from __future__ import annotations

import json
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any

from pydantic import ValidationError

from raymi.config import Config
from raymi.errors import UserError
from raymi.files import file_lock, not_readable, save, save_json
from raymi.runs.json_files import first_problem, missing_keys, read_json
from raymi.runs.json_types import About


class RunFolder:
    """Files of one run: all that it takes to continue, show and track it."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.config = path / "config.json"
        self.about = path / "run.json"
        self.journal = path / "journal.jsonl"
        self.checkpoints = path / "checkpoints"
        self.stop_file = path / "stop"
        self.pause_file = path / "pause"
        self.failure = path / "failure.json"
        self.earlier_errors = path / "earlier-errors.log"
        self.warnings = path / "warnings.log"
        self.tracking = path / "tracking.json"
        self.initial = path / "initial.safetensors"
        self.pretrained = path / "pretrained.safetensors"
        self.estimators = path / "estimators.safetensors"

    def machine_log(self, node: int) -> Path:
        """Returns the path of a machine's system metrics, a line for each record."""
        return self.path / f"machine-{node}.jsonl"

    def machine_logs(self) -> dict[int, Path]:
        """Returns the existing logs of machines by number."""
        logs = {
            log.stem.partition("-")[2]: log for log in sorted(self.path.glob("machine-*.jsonl"))
        }
        return {int(number): log for number, log in logs.items() if number.isdecimal()}

    def error_logs(self) -> list[Path]:
        """Returns the tracebacks of workers, a file for each failed rank."""
        return list(self.path.glob("error-*.log"))

    @property
    def name(self) -> str:
        """Name of the run."""
        return self.path.name

    def weights(self, which: str) -> Path:
        """Returns the path of a model's weights in safetensors, such as of "best"."""
        return self.path / f"{which}.safetensors"

    def lock(self, name: str = ".lock", wait: float = 0.0) -> AbstractContextManager[None]:
        """Locks the run against a second command or writer.

        Args:
            name: of the lock file.
            wait: seconds to wait for the lock.

        Raises:
            InUse: another process holds the lock; a UserError.
        """
        refusal = (
            f"the run {self.name} is running in another process: wait for it or stop it first "
            f"(if its node died: remove {self.path / name})"
        )
        return file_lock(self.path / name, refusal, wait)

    def write_config(self, config: Config) -> None:
        """Writes the resolved configuration.

        Raises:
            StorageError: it cannot be written.
        """
        save(self.config, config.model_dump_json(indent=2).encode())

    def read_config(self) -> Config:
        """Reads the resolved configuration.

        Raises:
            UserError: the folder is no run's, or of another version.
        """
        if not self.config.is_file():
            raise UserError(f"{self.path} is not a run of raymi: it has no {self.config.name}")
        try:
            data = self.config.read_bytes()
            config = Config.model_validate_json(data)
        except OSError as error:
            raise not_readable(self.config, error) from None
        except ValidationError as error:
            raise self._damaged(first_problem(error)) from None
        if missing := missing_keys(config, json.loads(data)):  # defaults would replace them
            raise self._damaged(f"it lacks {', '.join(missing[:3])}")
        return config

    def _damaged(self, problem: str) -> UserError:
        return UserError(
            f"{self.config} is damaged, or of another version of raymi: start a new run, or use "
            f"the version in {self.about} ({problem})"
        )

    def write_about(self, about: dict[str, Any]) -> None:
        """Writes facts beside the configuration: recipe, command, versions, MLflow id.

        Raises:
            StorageError: they cannot be written.
        """
        save_json(self.about, about)

    def read_about(self) -> dict[str, Any]:
        """Reads the content of `write_about`; empty if the file is missing.

        Raises:
            UserError: the file is damaged.
        """
        if not self.about.is_file():
            return {}
        remedy = "remove it: the run continues, and its recipe and command are unknown"
        return read_json(self.about, About, remedy).root
