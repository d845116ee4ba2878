"""Shape of the code: imports go down the floors, files and functions are small, no file names a machine.

A unit is a sub-package or a top-level module of euryale. Everything is read with ast, nothing is imported.
"""

import ast
import re
import subprocess
from functools import cache
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
PACKAGE = ROOT / "src" / "euryale"
SCRIPTS = sorted([*ROOT.glob("train/*.py"), *ROOT.glob("infer/*.py")])
MODULES = sorted(PACKAGE.rglob("*.py"))

# The floors of CONTRIBUTING.md: a room imports from rooms below its own alone.
FLOORS: dict[str, int] = {
    "euryale": 9,  # the front door: __init__.py gives the public names
    "cli": 8,
    "report": 7,
    "server": 7,
    "evaluation": 6,
    "regenerate": 6,
    "export": 6,
    "decoding": 5,
    "training": 5,
    "heads": 4,
    "base": 3,
    "kernels": 2,
    "data": 2,
    "system": 1,
    "errors": 0,
}

LONGEST_FILE, LONGEST_FUNCTION = 300, 60  # lines

# Assembled from pieces so that this file does not find itself.
MACHINE_FOLDERS = "|".join(["home", "root", "work", "Users", "workspace"])
MACHINE_PATH = re.compile(rf"(?<![\w.~$}}/-])/(?:{MACHINE_FOLDERS})/[\w.-]+")
TEXT_SUFFIXES = {".py", ".md", ".yaml", ".yml", ".toml", ".txt", ".json", ".jsonl", ".cfg", ""}


def relative(path: Path) -> str:
    return path.relative_to(ROOT).as_posix()


@cache
def parsed(path: Path) -> ast.Module:
    return ast.parse(path.read_text(encoding="utf-8"))


def unit_of(path: Path) -> str:
    first = path.relative_to(PACKAGE).parts[0]
    return "euryale" if first == "__init__.py" else first.removesuffix(".py")


def imported_modules(path: Path) -> list[str]:
    """Full dotted names that a file imports, also inside functions; `from a import b` gives both a and a.b."""
    names: list[str] = []
    for node in ast.walk(parsed(path)):
        if isinstance(node, ast.Import):
            names += [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{relative(path)}:{node.lineno} imports relatively"
            assert node.module is not None
            names += [node.module, *(f"{node.module}.{alias.name}" for alias in node.names)]
    return names


def imported_at_start(path: Path) -> set[str]:
    """Top names of what importing a file imports from outside, through the package's own files too."""
    outside, seen, waiting = set(), set(), [path]
    while waiting:
        body = parsed(waiting.pop()).body
        for node in (node for node in body if isinstance(node, (ast.Import, ast.ImportFrom))):
            named = [alias.name for alias in node.names]
            modules = named if isinstance(node, ast.Import) else [node.module or ""]
            if isinstance(node, ast.ImportFrom) and modules[0].startswith("euryale"):
                modules += [f"{node.module}.{name}" for name in named]
            ours = {name for name in modules if name.startswith("euryale.") and is_module(name)}
            outside |= {name.split(".")[0] for name in modules if not name.startswith("euryale")}
            waiting += [file for name in ours - seen if (file := file_of(name)).is_file()]
            seen |= ours
    return outside


def file_of(name: str) -> Path:
    return (ROOT / "src" / Path(*name.split("."))).with_suffix(".py")


def is_module(name: str) -> bool:
    path = ROOT / "src" / Path(*name.split("."))
    return path.with_suffix(".py").is_file() or (path / "__init__.py").is_file()


def tracked_text_files() -> list[Path]:
    listed = subprocess.run(["git", "ls-files", "-z"], cwd=ROOT, capture_output=True, text=True)
    if listed.returncode:
        pytest.skip("not a git checkout, so the files that belong to the repository are unknown")
    paths = [ROOT / name for name in listed.stdout.split("\0") if name]
    texts_of_others = {ROOT / "data", ROOT / "checkpoints"}  # prompts and vocabularies may speak of any folder
    return [
        path
        for path in paths
        if path.suffix in TEXT_SUFFIXES and path.is_file() and not texts_of_others & set(path.parents)
    ]


def test_every_unit_of_the_package_has_a_floor() -> None:
    assert {unit_of(path) for path in MODULES} <= set(FLOORS)


def test_imports_go_down_the_floors() -> None:
    for path in MODULES:
        importer = unit_of(path)
        for name in imported_modules(path):
            if name != "euryale" and not name.startswith("euryale."):
                continue
            imported = name.split(".")[1] if "." in name else "euryale"
            if imported not in FLOORS or imported == importer:
                continue
            assert FLOORS[imported] < FLOORS[importer] or name == "euryale", f"{relative(path)} imports {name}"


def test_modules_do_not_import_in_circles() -> None:
    graph: dict[str, set[str]] = {}
    for path in MODULES:
        parts = path.relative_to(PACKAGE.parent).with_suffix("").parts
        name = ".".join(parts[:-1] if parts[-1] == "__init__" else parts)
        imported = {other for other in imported_modules(path) if other.startswith("euryale.") and is_module(other)}
        graph[name] = imported - {name}
    finished: set[str] = set()

    def walk(name: str, above: tuple[str, ...]) -> None:
        assert name not in above, " -> ".join([*above[above.index(name) :], name])
        if name not in finished:
            for other in sorted(graph.get(name, ())):
                walk(other, (*above, name))
            finished.add(name)

    for name in sorted(graph):
        walk(name, ())


def test_only_scripts_and_cli_know_hydra() -> None:
    for path in MODULES:
        tops = {name.split(".")[0] for name in imported_modules(path)}
        assert unit_of(path) == "cli" or not tops & {"hydra", "omegaconf"}, relative(path)


def test_init_files_of_sub_packages_are_empty() -> None:
    for folder in sorted({path.parent for path in MODULES} - {PACKAGE}):
        init = folder / "__init__.py"
        assert init.is_file(), f"{relative(folder)} has no __init__.py"
        assert init.read_text(encoding="utf-8").strip() == "", relative(init)


@pytest.mark.parametrize("path", SCRIPTS, ids=relative)
def test_scripts_are_verbs(path: Path) -> None:
    text = path.read_text(encoding="utf-8")
    assert not [node for node in ast.walk(parsed(path)) if isinstance(node, ast.ClassDef)]
    assert len(text.splitlines()) <= 100
    tops = {name.split(".")[0] for name in imported_modules(path)}
    assert "torch" not in tops, "tensor arithmetic belongs in the package"


@pytest.mark.parametrize("path", SCRIPTS, ids=relative)
def test_help_and_refusals_of_a_script_wait_for_no_heavy_package(path: Path) -> None:
    """They take seconds to import, so a script imports them in its main, which runs after its settings are checked."""
    found = imported_at_start(path)
    assert "hydra" in found, "the script's own imports were followed"
    assert not found & {"torch", "transformers", "tokenizers", "huggingface_hub", "datasets", "httpx", "matplotlib"}


def test_a_file_is_one_idea_in_plain_ascii() -> None:
    for path in [*MODULES, *SCRIPTS]:
        text = path.read_text(encoding="utf-8")
        assert text.isascii(), relative(path)
        assert len(text.splitlines()) <= LONGEST_FILE, relative(path)
        if text.strip():
            assert ast.get_docstring(parsed(path)), f"{relative(path)} says what question it answers"


def test_a_function_fits_on_a_screen() -> None:
    for path in [*MODULES, *SCRIPTS]:
        for node in ast.walk(parsed(path)):
            if isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef)):
                assert node.end_lineno is not None
                assert node.end_lineno - node.lineno + 1 <= LONGEST_FUNCTION, f"{relative(path)}: {node.name}"


def test_the_floors_drawn_in_contributing_are_those_that_are_checked() -> None:
    """A line of the drawing is a floor: its rooms, each with a slash or .py, then what they are."""
    text = (ROOT / "CONTRIBUTING.md").read_text(encoding="utf-8")
    [drawing] = [
        block for block in re.findall(r"```\n(.*?)```", text, flags=re.S) if block.startswith("train/  infer/")
    ]
    drawn = [re.findall(r"(?<![\w(/])([a-z]+)(?:/|\.py)(?=\s|$)", line) for line in drawing.splitlines()[1:]]
    assert all(drawn), drawing
    floors = {room: level for level, rooms in enumerate(reversed(drawn)) for room in rooms}
    there = {room: level for room, level in FLOORS.items() if room != "euryale"}  # the front door is above them all
    assert sorted(floors) == sorted(there)
    for lower in there:
        for upper in there:
            assert (there[lower] < there[upper]) == (floors[lower] < floors[upper]), (lower, upper)


def test_repository_files_do_not_mention_machine_paths() -> None:
    found = []
    for path in tracked_text_files():
        for number, line in enumerate(path.read_text(encoding="utf-8", errors="replace").splitlines(), start=1):
            if match := MACHINE_PATH.search(line):
                found.append(f"{relative(path)}:{number}: {match.group()}")
    assert not found, "\n".join(found)


def test_the_machine_path_check_knows_one_when_it_sees_one() -> None:
    assert MACHINE_PATH.search("see " + "/".join(["", "home", "ann", "x.txt"]))
    assert MACHINE_PATH.search("'" + "/".join(["", "work", "main"]) + "'")
    assert not MACHINE_PATH.search("https://example.org/home/page")
    assert not MACHINE_PATH.search("share/home/x")
