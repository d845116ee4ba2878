"""What make gpu runs: every command's settings exist, and the small forms run on a CPU."""

import json
from pathlib import Path

import pytest
from hydra import compose, initialize_config_dir
from hydra.core.config_store import ConfigStore
from omegaconf import OmegaConf
from on_a_gpu import COMMANDS, Command
from scripts import run_script

from euryale.cli.schemas import SCHEMAS
from euryale.cli.script import CONF

NAMES = {
    "train/measure.py": "measure", "train/run.py": "train", "infer/bench.py": "bench",
    "infer/bench_kernels.py": "bench_kernels", "infer/bench_steps.py": "bench_steps",
}  # fmt: skip
# The others read a run, which costs a minute: tests/on_a_gpu.py FOLDER small runs them too.
ALONE = [c for c in COMMANDS if c.small is not None and not any("{runs}" in argument for argument in c.arguments)]


@pytest.mark.parametrize("is_small", [False, True])
def test_what_is_run_in_one_call_has_settings_that_exist(is_small: bool, tmp_path: Path) -> None:
    for name, schema in SCHEMAS.items():
        ConfigStore.instance().store(name=f"{name}_schema", node=schema)
    seen = set()
    for command in COMMANDS:
        script, *arguments = [argument.format(folder=tmp_path, runs=tmp_path) for argument in command.arguments]
        if script not in NAMES:
            assert command.small is None and arguments[:4] == ["pytest", "-q", "-m", "gpu"]
            continue
        with initialize_config_dir(str(CONF), version_base="1.3"):
            settings = compose(NAMES[script], [*arguments, *((command.small or ()) if is_small else ())])
        assert isinstance(OmegaConf.to_object(settings), SCHEMAS[NAMES[script]])
        seen.add(script)
    assert seen == set(NAMES)


@pytest.mark.parametrize("command", ALONE, ids=lambda command: command.name)
def test_the_small_form_of_a_command_runs_on_a_cpu(command: Command, tmp_path: Path) -> None:
    if "train/measure.py" in command.arguments or "infer/bench_steps.py" in command.arguments:
        pytest.importorskip("bitsandbytes")  # they are about 4 bits
    script, *arguments = [argument.format(folder=tmp_path) for argument in command.arguments]
    on_cpu = [] if script == "infer/bench_kernels.py" else ["base.device=cpu"]
    result = run_script(script, *arguments, *(command.small or ()), *on_cpu, "threads=1")
    assert result.status == 0, result.err
    [file] = [path for path in tmp_path.iterdir() if path.suffix in (".json", ".jsonl")]
    assert json.loads(file.read_text().splitlines()[-1] if file.suffix == ".jsonl" else file.read_text())
