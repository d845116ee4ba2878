"""Report of a checkpoint folder: report.json, the model card and the plots, from one plain dict.

report.json; any section or value may be absent, shares are between 0 and 1:
    base         Base.identity(): path, revision, architecture, vocab_size, hidden_size, fingerprint, dtype
    heads        HeadsConfig as a dict: kind, num_heads, num_layers, body, width, output, root_token
    training     steps, tokens, seconds, final_loss_nats, masked_batches; with adapters: adapter (LoraConfig as a dict),
                 base_kl_nats (KL of the adapted base from the base as it was, held-out)
    memory       estimated_bytes by what for (training/memory_estimate.py);
                 peak_bytes of the run up to `bench`: of the GPU, else resident, the process itself included
    accuracy     list over heads of {head, top1, top5, top10}: share of positions; head k looks k + 2 tokens ahead
    calibration  what tree.json holds: device, dtype, threads, calibrations (a list over temperatures)
    evaluation   num_prompts, temperature, tau (mean tokens per step), tau_by_depth (entry d - 1: share of steps that
                 accept at least d drafted tokens), identical and total (outputs equal to decoding without drafts),
                 identical_hf (equal to HF generate), repeated_8grams
    bench        contenders: {euryale | ar | hf_generate | hf_generate_static | hf_prompt_lookup: {tokens_per_s, tau,
                 ms_per_step, split_ms: {draft, verify, accept, commit}}}; spread: {contender: [lowest, highest]
                 tokens_per_s of a round}; speedup_vs_ar, speedup_vs_hf, temperature, num_nodes, max_new_tokens,
                 num_prompts, repeated_8grams
    breadth      prompts_a_kind, max_new_tokens, temperature; kinds: {kind: {num_questions, tau, speedup_vs_ar}} of the
                 bundled prompts that were not calibrated on; overall: the same of all; step_cost: of a step in those of
                 plain decoding, by which each tau is divided; without_gain: a list of kinds
    hardware     system.hardware.hardware()
    provenance   system.provenance.provenance(): argv, git_commit, versions, python, platform, time
"""

from pathlib import Path
from typing import Any

from euryale.decoding.tree.calibration import Calibration
from euryale.report.format import chosen_tree, describe_tree, nearest_calibration
from euryale.report.model_card import model_card
from euryale.report.plot_tree import tree_plot
from euryale.report.plots import accuracy_plot, bench_plot, calibration_plot
from euryale.system.files import json_text, write_atomically


def save_report(folder: Path, report: dict[str, Any]) -> list[Path]:
    """Writes report.json, README.md and the plots its sections allow into `folder`; returns their paths.

    Other files of the folder stay. Raises UserError when the disk does not take them; the old ones are then whole.
    """
    files = report_files(report)
    folder.mkdir(parents=True, exist_ok=True)
    with write_atomically(folder, last="report.json") as staged:
        staged.mkdir()
        for name, content in files.items():
            (staged / name).write_bytes(content if isinstance(content, bytes) else content.encode())
    return [folder / name for name in files]


def report_files(report: dict[str, Any]) -> dict[str, str | bytes]:
    """File name -> content."""
    pictures: dict[str, bytes] = {}
    if report.get("accuracy"):
        pictures["accuracy.png"] = accuracy_plot(report["accuracy"])
    calibration = report.get("calibration") or {}
    if calibration.get("calibrations"):
        pictures["calibration.png"] = calibration_plot(calibration)
    chosen = nearest_calibration(calibration, (report.get("evaluation") or {}).get("temperature"))
    if chosen and chosen.get("paths"):
        pictures["tree.png"] = calibrated_tree_plot(chosen)
    if (report.get("bench") or {}).get("contenders"):
        pictures["bench.png"] = bench_plot(report["bench"])
    return {"report.json": json_text(report), "README.md": model_card(report, list(pictures)), **pictures}


def calibrated_tree_plot(entry: dict[str, Any]) -> bytes:
    """The tree that one entry of tree.json chose."""
    nodes = Calibration(**entry).likeliest(entry["num_nodes"], entry.get("max_depth"))
    tau = chosen_tree(entry).get("tau")
    title = f"Tree of {describe_tree(entry)}, temperature {entry['temperature']:g}"
    title += f", tau {tau:.2f}" if tau else ""
    return tree_plot([path for path, _ in nodes], [p for _, p in nodes], title)
