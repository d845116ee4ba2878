"""The README's commands run as they stand there.

Every python line of its bash blocks and its Python block runs in this process, in the order of the page, on a tiny
random base that takes the place of the reader's own model and texts. `make` lines must be targets of the Makefile.
"""

import json
import re
import shlex
import sys
from pathlib import Path

import pytest
from scripts import Result, run_script

import euryale.cli.pipeline
import euryale.cli.script  # noqa: F401  (both import every module that the scripts use, before PROJECT is moved)

ROOT = Path(__file__).resolve().parents[1]
README = (ROOT / "README.md").read_text()
# Less of everything: the commands are tested here, not the heads.
SMALL = [
    "optim.num_steps=2", "optim.eval_batches=1", "regenerate.num_prompts=48", "regenerate.new_tokens=24",
    "regenerate.prompt_tokens=12", "calibrate.num_prompts=2", "calibrate.new_tokens=16", "calibrate.repeats=1",
    "calibrate.prompt_tokens=12", "calibrate.node_counts=[1,2,4]", "calibrate.context_tokens=16", "data.block_size=64",
    "evaluate.num_prompts=2", "evaluate.max_new_tokens=12", "evaluate.repeats=1", "threads=1", "data.held_out_one_in=4",
]  # fmt: skip
EXTRA = {
    "train/run.py": SMALL,
    "infer/run.py": ["max_new_tokens=8"],
    "infer/bench.py": ["max_new_tokens=8", "limit=2", "repeats=1"],
}


def blocks(language: str) -> list[str]:
    """The blocks of code in this language; "" for those that name none."""
    found = re.findall(r"^```(\w*)\n(.*?)^```$", README, flags=re.S | re.M)
    return [text for name, text in found if name == language]


def commands() -> list[str]:
    lines = [line.split("  #")[0].strip() for block in blocks("bash") for line in block.splitlines()]
    return [line for line in lines if line]


@pytest.fixture
def reader(tmp_path: Path, tiny_llama_folder: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder that holds what the page calls my-llama, my-texts.jsonl and my-prompts.txt; runs land in it."""
    (tmp_path / "my-llama").symlink_to(tiny_llama_folder)
    rows = [{"text": f"row {i}: " + "the quick brown fox jumps over the lazy dog " * 4} for i in range(40)]
    (tmp_path / "my-texts.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    (tmp_path / "my-prompts.txt").write_text("the quick\nthe lazy dog\n")
    monkeypatch.chdir(tmp_path)
    for module in list(sys.modules.values()):
        is_ours = module.__name__.startswith("euryale") and module.__name__ != "euryale.cli.script"  # conf/ stays
        if is_ours and getattr(module, "PROJECT", None) == ROOT:
            monkeypatch.setattr(module, "PROJECT", tmp_path)
    return tmp_path


def run_line(line: str, project: Path) -> Result:
    _, script, *arguments = shlex.split(line)
    extra = EXTRA.get(script, [])
    if script == "train/run.py":
        extra = [*extra, f"output={project / 'checkpoints'}", f"regenerate.output={project / 'regenerated'}"]
    return run_script(script, *arguments, *extra)


def test_the_readme_s_commands_and_python_run(reader: Path, capsys: pytest.CaptureFixture[str]) -> None:
    lines = [line for line in commands() if line.startswith("python ")]
    assert len(lines) >= 3
    for line in lines:
        result = run_line(line, reader)
        assert result.status == 0 and isinstance(result.last_line, dict), (line, result.err)
    [snippet] = blocks("python")
    exec(compile(snippet, "README.md", "exec"), {})
    assert len(capsys.readouterr().out) > 0


def test_the_readme_s_make_targets_exist() -> None:
    makefile = (ROOT / "Makefile").read_text()
    targets = [line.split()[1] for line in commands() if line.startswith("make ")]
    assert "demo" in targets and "test" in targets
    for target in targets:
        assert re.search(rf"^{target}:", makefile, flags=re.M), target


def test_the_readme_names_only_scripts_and_pages_that_exist() -> None:
    scripts, links = re.findall(r"(?:train|infer)/\w+\.py", README), re.findall(r"\]\((?!https?:)([^)#]+)", README)
    assert len(set(scripts)) >= 5 and len(links) >= 3
    for name in (*scripts, *links):
        assert (ROOT / name).exists(), name


def test_the_readme_s_tree_is_that_of_the_folders() -> None:
    """Each room of src/euryale on a line of its own, and no other; the folders around them exist."""
    [tree] = [block for block in blocks("") if "src/euryale/" in block]
    names = [(len(line) - len(line.lstrip()), line.split("  ")[0] or line.split()[0]) for line in tree.splitlines()]
    outer = [part for depth, name in names if depth == 0 for part in name.split()]
    assert len(outer) >= 4
    for name in outer:
        assert (ROOT / name).is_dir(), name
    rooms = {line.split()[0] for (depth, _), line in zip(names, tree.splitlines(), strict=True) if depth > 0}
    package = ROOT / "src" / "euryale"
    there = {f"{path.name}/" for path in package.iterdir() if path.is_dir() and path.name != "__pycache__"}
    there |= {path.name for path in package.glob("*.py")} - {"__init__.py"}
    assert rooms == there
