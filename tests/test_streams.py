"""Standard streams that are closed, full, or that nobody reads any more."""

import subprocess
import sys
from pathlib import Path

import pytest

from euryale.system import streams

ROOT = Path(__file__).resolve().parents[1]
FULL = Path("/dev/full")
needs_full = pytest.mark.skipif(not FULL.exists(), reason="no device that is always full here")


def ends(code: str, redirected: str) -> subprocess.CompletedProcess[str]:
    """Of `python -c CODE` with the redirections of a shell."""
    command = ["bash", "-c", f'"$0" -c "$1" {redirected}', sys.executable, code]
    return subprocess.run(command, capture_output=True, text=True, timeout=60)


def test_closed_streams_leave_their_numbers_to_no_file(tmp_path: Path) -> None:
    file = str(tmp_path / "numbers")
    code = f"import euryale.cli.ctrl_c; made = open({file!r}, 'w'); made.write(str(made.fileno()))"
    for closed in ("<&-", ">&-", "2>&-", "<&- >&- 2>&-"):
        assert ends(code, closed).returncode == 0
        assert int(Path(file).read_text()) > 2, closed


def test_what_is_said_with_closed_streams_goes_nowhere() -> None:
    code = (
        "import sys, euryale.cli.ctrl_c; print('a'); print('b', file=sys.stderr); sys.exit(3 + len(sys.stdin.read()))"
    )
    ended = ends(code, "<&- >&- 2>&-")
    assert (ended.returncode, ended.stdout, ended.stderr) == (3, "", "")
    assert ends(code, "<&- 2>&-").stdout == "a\n"  # what is meant for stderr is not said on stdout


@needs_full
def test_a_full_stdout_is_one_message_and_status_2() -> None:
    ended = ends("from euryale.system import streams\nwith streams.guarded(): print('said')", f"> {FULL}")
    assert ended.returncode == streams.UNWRITABLE
    assert ended.stderr.startswith("error: stdout must take what is written to it; got: No space left on device")
    assert "Traceback" not in ended.stderr and len(ended.stderr.splitlines()) == 1


def test_without_a_reader_the_process_ends_at_its_next_word_without_one(tmp_path: Path) -> None:
    file = tmp_path / "after"
    code = (
        "import sys\nfrom euryale.system import streams\nsys.stdin.read()\nwith streams.guarded():\n"
        f"    print('said', flush=True)\n    open({str(file)!r}, 'w')"
    )
    ended = ends(code, "< <(sleep 0.2) | true; exit ${PIPESTATUS[0]}")
    assert (ended.returncode, ended.stderr) == (streams.GONE, "")
    assert not file.exists()


@needs_full
def test_a_full_stderr_changes_no_status() -> None:
    code = (
        "import sys\nfrom euryale.system import streams\nwith streams.guarded():\n"
        "    print('error', file=sys.stderr, flush=True)\n    print('said')\n    sys.exit(5)"
    )
    ended = ends(code, f"2> {FULL}")
    assert (ended.returncode, ended.stdout) == (5, "said\n")


@needs_full
def test_scripts_are_guarded() -> None:
    command = f"{sys.executable} {ROOT / 'infer' / 'run.py'} --help > {FULL}"
    ended = subprocess.run(["bash", "-c", command], capture_output=True, text=True, timeout=60)
    assert ended.returncode == streams.UNWRITABLE and "Traceback" not in ended.stderr
