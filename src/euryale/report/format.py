"""Wording of measured numbers: the same words for console tables, model card and plots.

Reports may lack any part (see `report.py`), so a missing number becomes a dash, never a zero.
"""

from typing import Any

from euryale.evaluation.repetition import LOOPING_SHARE

CONTENDERS = {
    "euryale": "Euryale",
    "ar": "AR (same engine, no drafts)",
    "hf_generate": "HF generate",
    "hf_generate_static": "HF generate, static cache",
    "hf_prompt_lookup": "HF prompt lookup",
    "llama_cpp": "llama.cpp, same GGUF file",
}
MISSING = "-"


def number(value: float | None, digits: int = 2) -> str:
    return MISSING if value is None else f"{value:,.{digits}f}"


def percent(share: float | None) -> str:
    """A share of 1 as a percentage."""
    return MISSING if share is None else f"{100 * share:.1f}%"


def times(ratio: float | None) -> str:
    return MISSING if ratio is None else f"{ratio:.2f}x"


def duration(seconds: float | None) -> str:
    if seconds is None:
        return MISSING
    if seconds < 60:
        return f"{seconds:.1f} s"
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours} h {minutes:02d} min" if hours else f"{minutes} min {rest:02d} s"


def top_ranks(accuracy: list[dict[str, Any]]) -> list[int]:
    """The k of every `topK` column that the rows of an accuracy section have, ascending."""
    return sorted({int(key[3:]) for row in accuracy for key in row if key.startswith("top") and key[3:].isdigit()})


def speedups(bench: dict[str, Any]) -> tuple[float | None, float | None]:
    """(over AR, over HF generate): as the benchmark gave them, else from its tokens per second."""
    found: list[float | None] = []
    for key, rival in (("speedup_vs_ar", "ar"), ("speedup_vs_hf", "hf_generate")):
        ratio = bench.get(key)
        if ratio is None:
            own, other = (bench.get("contenders", {}).get(name, {}).get("tokens_per_s") for name in ("euryale", rival))
            ratio = own / other if own and other else None
        found.append(ratio)
    return found[0], found[1]


def nearest_calibration(tree: dict[str, Any] | None, temperature: float | None) -> dict[str, Any] | None:
    """The entry of a tree.json made at the temperature nearest to the one asked for; None when there is none."""
    entries = (tree or {}).get("calibrations") or []
    return min(entries, key=lambda entry: abs(entry.get("temperature", 0.0) - (temperature or 0.0)), default=None)


def chosen_tree(entry: dict[str, Any]) -> dict[str, Any]:
    """num_nodes, max_depth, tau and step_ms of the tree that an entry of tree.json chose, and `speedup` over one node.

    Of the finalists' own timing where there is one, else of the timing of all sizes. A number may be missing.
    """
    chosen = {key: entry.get(key) for key in ("num_nodes", "max_depth")}
    tau, step_ms = entry.get("tau") or {}, entry.get("step_ms") or {}
    full = [{"num_nodes": int(n), "max_depth": None, "tau": tau[n], "step_ms": step_ms.get(n)} for n in tau]
    for timed in (entry.get("finalists") or [], [*full, *(entry.get("shallow") or [])]):
        found = next((tree for tree in timed if {key: tree.get(key) for key in chosen} == chosen), None)
        if found is not None:
            alone: dict[str, Any] = next((tree for tree in timed if tree["num_nodes"] == 1), {})
            return found | {"speedup": _speedup(found, alone)}
    return chosen


def dynamic_tree(entry: dict[str, Any]) -> dict[str, Any] | None:
    """num_nodes and max_depth of the dynamic tree that an entry of tree.json chose, tau and step_ms if they are kept.

    None where it chose one tree for all steps.
    """
    if not entry.get("dynamic_depth"):
        return None
    chosen = {"num_nodes": entry.get("dynamic_nodes") or entry.get("num_nodes"), "max_depth": entry["dynamic_depth"]}
    counted = entry.get("dynamic") or []
    return next((tree for tree in counted if {key: tree.get(key) for key in chosen} == chosen), chosen)


def _speedup(tree: dict[str, Any], alone: dict[str, Any]) -> float | None:
    """Tokens a millisecond over those of one node."""
    numbers = [tree.get("tau"), tree.get("step_ms"), alone.get("tau"), alone.get("step_ms")]
    if not all(numbers):
        return None
    return tree["tau"] / tree["step_ms"] / (alone["tau"] / alone["step_ms"])


def describe_tree(entry: dict[str, Any]) -> str:
    """`6 nodes, 2 deep`, as an entry of tree.json chose."""
    nodes, depth = entry.get("num_nodes"), entry.get("max_depth")
    return f"{nodes} node{'' if nodes == 1 else 's'}" + ("" if depth is None else f", {depth} deep")


def describe_heads(heads: dict[str, Any]) -> str:
    """`4 hydra heads (mlp body, width 4, shared output)`."""
    details = [f"{heads['body']} body"] if heads.get("body") else []
    details += [f"width {heads['width']:g}"] if "width" in heads else []
    details += [f"{heads['output']} output"] if heads.get("output") else []
    details += ["induction"] if heads.get("induction") else []
    if heads.get("kind") == "medusa" and "root_token" in heads:
        details.append("with the root token" if heads["root_token"] else "without the root token")
    inside = ", ".join(details)
    counted = f"{heads.get('num_heads', '')} {heads.get('kind', 'Medusa')} heads".strip()
    return f"{counted} ({inside})" if inside else counted


def rule_line(section: dict[str, Any]) -> str | None:
    """What a reader must know of the accept rule that a section was measured with; None for `exact`."""
    rule = section.get("accept") or {}
    if not section.get("temperature"):
        return None  # greedy decoding is one walk whatever the rule
    if rule.get("name") == "typical":
        return (
            f"LOSSY: typical (threshold {rule['threshold']:g}, alpha {rule['alpha']:g}) takes what is likely enough, "
            "so the text is not a sample of the base"
        )
    if rule.get("name") == "rejection":
        return "rejection: lossless in distribution; a seed's text depends on tree and drafter"
    return None if rule.get("coupled", True) else "exact, candidates ranked without the noise of the draw"


def _is_same_text(section: dict[str, Any]) -> bool:
    """Whether the accept rule promises the text of plain decoding."""
    return not section.get("temperature") or (section.get("accept") or {}).get("name", "exact") == "exact"


def contender(name: str, section: dict[str, Any]) -> str:
    """A contender's name in tables and plots, with a word where it is lossy."""
    is_lossy = name == "euryale" and str(rule_line(section)).startswith("LOSSY")
    return CONTENDERS.get(name, name) + (" (LOSSY)" if is_lossy else "")


def identical_line(evaluation: dict[str, Any]) -> str | None:
    """Whether tree decoding gave the text that the base alone gives; None when that was not compared or promised.

    Where no proof of the machine's sums stands in the result, equal outputs were seen and are not guaranteed.
    """
    if evaluation.get("identical") is None or not evaluation.get("total") or not _is_same_text(evaluation):
        return None
    same, total = evaluation["identical"], evaluation["total"]
    if same == total:
        known = ""
        if "is_exact" in evaluation:
            known = ", as proven for this machine" if evaluation["is_exact"] else " (seen, not guaranteed)"
        return f"{same}/{total} outputs identical to decoding without drafts{known}"
    return f"{same}/{total} outputs identical to decoding without drafts; {total - same} differ"


def teacher_forced_line(evaluation: dict[str, Any]) -> str | None:
    """How many tokens are the base's own choice given all before them; None when that was not checked."""
    found = evaluation.get("teacher_forced")
    if not found or not _is_same_text(evaluation):
        return None
    if found["base_choice_share"] == 1:
        return f"all {found['num_tokens']:,} tokens are the base's own choice"
    plain = evaluation.get("teacher_forced_ar") or {}
    also = f" (without drafts: {100 * plain['base_choice_share']:.2f}%)" if plain else ""
    return (
        f"{100 * found['base_choice_share']:.2f}% of {found['num_tokens']:,} tokens are the base's own choice{also}, "
        f"{100 * found['within_gap_share']:.2f}% within {found['gap_limit_ulps']} units in the last place of it"
    )


def looping_warning(share: float | None) -> str | None:
    """What a reader must know when the measured text repeats itself; None when it does not."""
    if share is None or share <= LOOPING_SHARE:
        return None
    return (
        f"{percent(share)} of the 8-grams repeat earlier ones (limit {percent(LOOPING_SHARE)}): the text loops, which "
        "makes drafting easy and flatters tau. Measure at temperature=0.8, or with a better trained base."
    )


def breadth_warning(breadth: dict[str, Any]) -> str | None:
    """Which kinds of prompts gain nothing, and what helps; None where all gain."""
    kinds = breadth.get("without_gain")
    if not kinds:
        return None
    return (
        f"nothing is gained on {', '.join(kinds)}: the heads saw too little such text. Train on more of it: data=self "
        "(the base asks itself questions of all kinds), or several sources together with data=mix."
    )


def describe_hardware(hardware: dict[str, Any]) -> str:
    """`NVIDIA H200, AMD EPYC (16 cores, 16 threads), torch 2.13.0`, from `hardware.hardware()`."""
    parts = [hardware["gpu"]] if hardware.get("gpu") else []
    if hardware.get("cpu"):
        counts = [f"{hardware[key]} {key}" for key in ("cores", "threads") if hardware.get(key) is not None]
        parts.append(hardware["cpu"] + (f" ({', '.join(counts)})" if counts else ""))
    if hardware.get("torch"):
        parts.append(f"torch {hardware['torch']}")
    return ", ".join(parts)
