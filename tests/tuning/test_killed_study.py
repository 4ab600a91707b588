"""After a kill during the creation of a study's file, the next process completes it."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from contextlib import suppress
from pathlib import Path

import pytest
from raymi_command import environment

from raymi.tuning.space import find_space
from raymi.tuning.study import Study

CREATE = """
import sys
from pathlib import Path
from raymi.tuning.space import find_space
from raymi.tuning.study import Study
Study(Path(sys.argv[1]), find_space("smoke"))
"""


@pytest.mark.exhaustive
@pytest.mark.parametrize("num_bytes", [1, 4_096, 20_000, 60_000, 90_000, 120_000])
def test_a_study_whose_creation_was_killed_is_completed(tmp_path: Path, num_bytes: int) -> None:
    file = tmp_path / "study.db"
    process = subprocess.Popen([sys.executable, "-c", CREATE, str(file)], env=environment())
    while process.poll() is None and not (file.is_file() and file.stat().st_size >= num_bytes):
        time.sleep(0.0005)
    with suppress(ProcessLookupError):
        os.kill(process.pid, signal.SIGKILL)
    process.wait()
    assert file.is_file()
    study = Study(file, find_space("smoke"))
    assert study.ask().number == 0
