"""What a worker does around the engine's loop."""

from __future__ import annotations

from pathlib import Path

import pytest

from raymi.engine.run_folder import RunFolder
from raymi.orchestration.worker import _put_earlier_errors_aside


def test_errors_of_earlier_workers_are_told_once_and_kept_apart(tmp_path: Path) -> None:
    folder = RunFolder(tmp_path)
    _put_earlier_errors_aside(folder)
    assert not folder.earlier_errors.exists(), "nothing to tell"
    (tmp_path / "error-rank1.log").write_text("Traceback (…)\nRuntimeError: lost a peer\n\n")
    with pytest.warns(UserWarning, match="ended with RuntimeError: lost a peer"):
        _put_earlier_errors_aside(folder)
    assert not folder.error_logs(), "or a later failure would be explained by it"
    assert "RuntimeError: lost a peer" in folder.earlier_errors.read_text()
    _put_earlier_errors_aside(folder)
