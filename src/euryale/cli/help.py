"""The text of --help: what a script does, examples, the groups with their options, and every setting with its reason.

All of it stands elsewhere already: in the script's docstring and in conf/, whose comments say what a setting means.
(Hydra's own --help composes every group first, which takes seconds, and loses the comments.)
"""

import re
from collections.abc import Sequence
from pathlib import Path

import yaml  # type: ignore[import-untyped]  # comes with omegaconf

FLAGS = ("--help", "-h")
_OVERLAYS = ("recipe", "sweep")  # groups that change settings of others, and have none of their own
_BLOCK = re.compile(r"^(\w+):.*\n(?:[ -].*\n)*", re.MULTILINE)  # a setting at the margin, and what belongs to it
_END = """\
-m starts a sweep over values with commas between them; --cfg job prints the settings that a command line comes to, and
starts nothing; --hydra-help lists the other flags. All of the above stands in conf/.
"""


def help_text(name: str, description: str, conf: Path, arguments: Sequence[str]) -> str:
    """Of the script of conf/NAME.yaml, with the settings of the options that the arguments choose."""
    defaults = yaml.safe_load((conf / f"{name}.yaml").read_text(encoding="utf-8"))["defaults"]
    chosen = _options(defaults, arguments)
    parts = [description.strip()]
    if chosen:
        there = {group: " | ".join(sorted(file.stem for file in (conf / group).glob("*.yaml"))) for group in chosen}
        lines = [f"  {group}={option}: {there[group]}" for group, option in chosen.items()]
        parts.append("Groups (GROUP=OPTION), the option of this command line and those there are:\n" + "\n".join(lines))
    settings = [
        _below(group, option, _settings(conf / group / f"{option}.yaml"))
        for group, option in chosen.items()
        if group not in _OVERLAYS and (conf / group / f"{option}.yaml").is_file()
    ]
    files = [conf / f"{entry}.yaml" for entry in [*defaults, name] if isinstance(entry, str)]
    settings.append("".join(block for file in files if file.is_file() for block in _settings(file).values()))
    changed = "; a recipe changes what its file says" if "recipe" in chosen else ""
    parts.append(
        f"Settings (KEY=VALUE, of a group GROUP.KEY=VALUE) and their defaults{changed}:\n" + "\n".join(settings)
    )
    return "\n\n".join([*parts, _END])


def _options(defaults: Sequence[object], arguments: Sequence[str]) -> dict[str, str]:
    """The groups of a defaults list and the option of each: the one that an argument chooses, else the list's own."""
    asked = dict(argument.lstrip("+").split("=", 1) for argument in arguments if "=" in argument)
    options: dict[str, str] = {}
    for entry in defaults:
        for group, own in entry.items() if isinstance(entry, dict) else ():
            if not group.startswith("override "):
                option = asked.get(group) or own or "null"
                options[group] = options[option[2:-1]] if option.startswith("${") else option
    return options


def _below(group: str, option: str, settings: dict[str, str]) -> str:
    """Settings as YAML below the name of their group."""
    lines = "".join(settings.values()).splitlines()
    return "\n".join([f"{group}:  # {option}", *(f"  {line}" for line in lines), ""])


def _settings(file: Path) -> dict[str, str]:
    """The settings of a file by name, with their comments, and those of the option that it builds on; without
    Hydra's own."""
    text = file.read_text(encoding="utf-8")
    builds_on = re.search(r"^defaults: \[(\w+), _self_\]", text, re.MULTILINE)
    settings = _settings(file.with_name(f"{builds_on[1]}.yaml")) if builds_on else {}
    settings |= {match[1]: match[0] for match in _BLOCK.finditer(text)}
    return {key: block for key, block in settings.items() if key not in ("defaults", "hydra")}
