"""What settings name is looked for, and where results will be written is tried, before anything else is done."""

import errno
import os
from pathlib import Path

import pytest
from scripts import assert_refused, run_script

from euryale.system import files


@pytest.fixture
def read_only(monkeypatch: pytest.MonkeyPatch) -> None:
    """A file system that was mounted so: permissions stop no root."""

    def refuse(**where: object) -> None:
        raise OSError(errno.EROFS, os.strerror(errno.EROFS))

    monkeypatch.setattr(files.tempfile, "TemporaryFile", refuse)


@pytest.mark.usefixtures("read_only")
def test_a_checkpoint_that_cannot_be_written_to_is_not_calibrated_first(tmp_path: Path) -> None:
    (tmp_path / "heads.json").write_text("{}")
    refused = run_script("infer/calibrate.py", f"checkpoint={tmp_path}")
    assert_refused(refused, f"checkpoint={tmp_path}: nothing can be written to", "Read-only file system")


@pytest.mark.usefixtures("read_only")
def test_a_sweep_that_cannot_write_says_so_before_its_jobs(tmp_path: Path) -> None:
    refused = run_script("train/run.py", "-m", "seed=0,1", f"output={tmp_path}", "name=swept")
    assert_refused(refused, f"output={tmp_path}: nothing can be written to {tmp_path / 'swept'}")
    assert not list(tmp_path.iterdir())
