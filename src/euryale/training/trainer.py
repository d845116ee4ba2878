"""Training loop of one run: fetch, forward, backward, step, log, evaluate, save, and resume after a stop.

The loop is `Trainer.fit`. Every process runs it on batches of its own; the first one writes.
"""

import logging
import time
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import NoReturn

import torch
from accelerate import Accelerator
from accelerate.utils import gather_object

from euryale.base.base import Base
from euryale.base.lora import check_recompute, learning
from euryale.data.batches import Batch, BatchStream
from euryale.data.distributed import Dealt
from euryale.data.random_batches import RandomRows
from euryale.errors import UserError
from euryale.heads.heads import Heads
from euryale.system.memory import peak
from euryale.system.paths import argument
from euryale.system.progress import Progress
from euryale.training.config import ObjectiveConfig, OptimConfig
from euryale.training.metrics_log import MetricsLog, forget_metrics, truncate_metrics
from euryale.training.objective import OBJECTIVES
from euryale.training.optimizer import autocast, build_optimizer, learning_rate, trained_parameters
from euryale.training.publish import is_published, publish
from euryale.training.resume import (
    drop_older_saves,
    flatten,
    load_resume,
    random_state,
    restore_random_state,
    restore_tensors,
    run_settings,
    save_resume,
    share_batches,
)
from euryale.training.saves import is_unsaved
from euryale.training.scoring import check_labels
from euryale.training.signals import Interrupted, SignalGuard
from euryale.training.stages import stage_at
from euryale.training.sums import DeviceSums, HostSums, add_up, average_gradients

MAX_BARREN_STEPS = 10  # steps in a row without a label before a run says that it learns nothing
MAX_NAMED_ROWS = 8
log = logging.getLogger(__name__)


class Trainer:
    """Trains heads on a frozen base (`medusa1`) or the base itself (`pretrain`) and keeps the run in `folder`.

    `held_out` is walked from its beginning at every evaluation. `settings` is whatever else decides the result (data,
    seed): a resumed run must bring the same. With `resume`, `folder` is a run to be continued.
    Raises UserError for settings that cannot be trained with or continued.
    """

    def __init__(
        self,
        base: Base,
        heads: Heads | None,
        objective: ObjectiveConfig,
        optim: OptimConfig,
        batches: BatchStream | Dealt | RandomRows,
        held_out: Sequence[Batch],
        folder: Path,
        settings: Mapping[str, object] | None = None,
        resume: bool = False,
        wandb: str = "off",
    ) -> None:
        objective.check()
        optim.check()
        self.base, self.heads, self.batches, self.held_out, self.folder = base, heads, batches, held_out, folder
        self.objective, self.optim = objective, optim
        check_labels(held_out[: optim.eval_batches], OBJECTIVES[objective.kind].gap)
        self.accelerator = Accelerator(cpu=base.device.type == "cpu")
        num_processes = self.accelerator.num_processes
        if resume:
            self.optim = share_batches(folder, optim, num_processes)
        self.parameters = trained_parameters(base, heads, objective.kind)
        trains_adapter = OBJECTIVES[objective.kind].trains_adapter
        multiplier = objective.heads_lr_multiplier if trains_adapter else 1.0
        self.optimizer = build_optimizer(
            self.parameters, optim, multiplier, heads.blocks_of_matrices() if heads is not None else None
        )
        self._first_share = objective.stage_one_share if trains_adapter else 1.0
        if optim.gradient_checkpointing:
            check_recompute(base)
        self.settings = run_settings(base, heads, objective, self.optim, flatten(settings or {}), num_processes)
        self.step = self.tokens = self.num_masked = 0
        self.seconds = 0.0
        self._num_barren = 0  # steps in a row without a single label
        self.held_out_metrics: dict[str, object] = {}
        self._window = HostSums()
        self._pending: dict[str, object] | None = None  # the record of a step that was stopped before its evaluation
        wandb_id = None
        if resume and not is_unsaved(folder):
            wandb_id = self._load()
        elif resume:
            forget_metrics(folder / "metrics.jsonl", self.accelerator.is_main_process)
        elif (folder / "resume").exists() or (folder / "metrics.jsonl").exists():
            raise UserError(f"{folder} must not hold a run. Go on with it (resume={folder}), or give another name=.")
        self.accelerator.wait_for_everyone()
        writes = self.accelerator.is_main_process
        self.log = MetricsLog(folder / "metrics.jsonl", wandb, self.settings, wandb_id) if writes else None

    def fit(self) -> dict[str, object]:
        """Trains to the last step. Returns the last held-out metrics with step, tokens, seconds and checkpoint.

        Raises Interrupted after Ctrl-C, SIGTERM or SIGUSR2, when all is saved; UserError when the loss is not finite.
        """
        progress = Progress("training", self.optim.num_steps, "steps", self.step, self.accelerator.is_main_process)
        try:
            with SignalGuard() as guard:
                if self._pending is not None:
                    self._finish_record(self._pending)
                while self.step < self.optim.num_steps:
                    started = time.monotonic()
                    result = self.train_step()
                    self._window.add(result, time.monotonic() - started)
                    record = self._training_record(progress)
                    if signal_number := self._agreed(guard.received):
                        self._stop(record, signal_number)
                    self._finish_record(record)
                    if self._is_due(self.optim.save_every):
                        self.save()
        finally:
            progress.close()
            if self.log is not None:
                self.log.close()
        host, device = peak(self.base.device)
        return self.held_out_metrics | {
            "step": self.step,
            "tokens": self.tokens,
            "seconds": self.seconds,
            "masked_batches": self.num_masked,
            "peak_memory_bytes": host if device is None else device,
            "checkpoint": str(self.folder),
        }

    def train_step(self) -> HostSums:
        """One optimizer step over `gradient_accumulation` batches of this process."""
        stage = stage_at(self.step, self.optim.num_steps, self._first_share)
        for group in self.optimizer.param_groups:
            group["lr"] = learning_rate(stage.step, self.optim, stage.num_steps) * group["lr_multiplier"]
        tokens = 0
        sums: list[DeviceSums] = []
        origins: list[list[str]] = []
        for _ in range(self.optim.gradient_accumulation):
            batch = next(self.batches)
            origins.append(list(self.batches.origins))
            tokens += int((batch.documents_BT >= 0).sum())
            with learning(self.base, self.optim.gradient_checkpointing):
                with autocast(self.optim, self.base.device):
                    part = OBJECTIVES[self.objective.kind].loss(self.base, self.heads, batch, self.objective, stage)
                part.loss.backward()
            sums.append(part._replace(loss=part.loss.detach()))  # frees the autograd graph
        totals = add_up(sums, tokens, self.accelerator)
        grad_norm = average_gradients(
            list(self.parameters.values()), totals.num_labels, self.optim.max_grad_norm, self.accelerator
        )
        # The one wait for the device in a step: a broken loss must stop the run before it reaches the weights.
        result = totals.to_host(grad_norm)
        if not result.is_finite:
            self._stop_broken(result, sums, origins)
        if result.has_labels:  # without a label moments would still move the weights
            self.optimizer.step()
            self._num_barren = 0
        else:
            self._num_barren += 1
        self.optimizer.zero_grad(set_to_none=True)
        self.step += 1
        self.tokens += result.tokens
        self.num_masked += result.num_masked
        return result

    def evaluate(self) -> dict[str, object]:
        """Held-out metrics of the present weights."""
        evaluate = OBJECTIVES[self.objective.kind].evaluate
        with autocast(self.optim, self.base.device):
            metrics = evaluate(self.base, self.heads, self.held_out, self.optim.eval_batches, self.objective)
        self.held_out_metrics = {f"held_out_{key}": value for key, value in metrics.items()}
        return self.held_out_metrics

    def save(self) -> None:
        """Writes the resume state, then what can be used already: the heads; at the end a trained base."""
        random_states = gather_object([random_state(self.base.device)])
        if self.accelerator.is_main_process:
            assert self.log is not None
            state = {
                "cursor": self.batches.state_dict(),  # the same in all processes: see data.distributed
                "random": random_states,
                "settings": self.settings,
                "tokens": self.tokens,
                "seconds": self.seconds,
                "no_label": [self.num_masked, self._num_barren],
                "window": asdict(self._window),
                "pending": self._pending,
                "held_out_metrics": self.held_out_metrics,
                "wandb_id": self.log.wandb_id,
            }
            save_resume(self.folder, self.step, self.parameters, self.optimizer, state)
            self._publish()
        self.accelerator.wait_for_everyone()

    def _publish(self, always: bool = True) -> None:
        is_last = self.step == self.optim.num_steps
        if always or not is_published(self.folder, self.heads, self.step, is_last):
            facts = {"step": self.step, "tokens": self.tokens, "settings": self.settings}
            publish(self.folder, self.base, self.heads, self.objective, facts, is_last)

    def _load(self) -> str | None:
        """Puts everything back as it was; returns the wandb id."""
        save, state = load_resume(self.folder, self.settings)
        restore_tensors(save, state["moments"], self.parameters, self.optimizer)
        self.batches.load_state_dict(state["cursor"])
        restore_random_state(state["random"], self.accelerator.process_index, self.base.device)
        self.step, self.tokens, self.seconds = state["step"], state["tokens"], state["seconds"]
        self.num_masked, self._num_barren = state["no_label"]
        self.held_out_metrics = state["held_out_metrics"]
        self._window = HostSums(**state["window"])
        self._pending = state["pending"]
        if self.accelerator.is_main_process:
            truncate_metrics(self.folder / "metrics.jsonl", self.step - (self._pending is not None))
            drop_older_saves(self.folder)
            self._publish(always=False)  # a kill may have come between the parts of a save
            log.info("going on with %s after step %d of %d", self.folder, self.step, self.optim.num_steps)
        return state["wandb_id"]

    def _training_record(self, progress: Progress) -> dict[str, object]:
        """The numbers of the steps since the last log point; empty between log points."""
        if not self._is_due(self.optim.log_every):
            progress.advance()
            return {}
        if self._num_barren and (self._num_barren >= MAX_BARREN_STEPS or self.step == self.optim.num_steps):
            raise UserError(
                f"The data must have labels; got none in the last {self._num_barren} steps: documents are too short "
                "for the heads, or no token is a target. Check the data (data=...), or use fewer heads."
            )
        loss = "no label" if self._window.loss_nats is None else f"loss {self._window.loss_nats:.3f} nats"
        progress.advance(facts=f"{loss}, {self._window.tokens_per_s:,.0f} tokens/s")
        record = self._window.record() | {"lr": self.optimizer.param_groups[-1]["lr"], "tokens": self.tokens}
        self.seconds += self._window.seconds
        self._window = HostSums()
        return record

    def _finish_record(self, record: dict[str, object]) -> None:
        """Evaluates when that is due and writes the step's line, if it has anything to say."""
        self._pending = None
        if self.held_out and self.optim.eval_batches and self._is_due(self.optim.eval_every):
            record = record | self.evaluate()
        if record and self.log is not None:
            self.log.write({"step": self.step} | record)

    def _stop(self, record: dict[str, object], signal_number: int) -> None:
        self._pending = record
        self.save()
        raise Interrupted(
            f"Stopped after step {self.step} of {self.optim.num_steps}; everything is saved. "
            f"Go on with: python train/run.py {argument('resume', self.folder)}",
            signal_number,
        )

    def _is_due(self, every: int) -> bool:
        """At multiples of `every` and at the end; 0 is only at the end."""
        return self.step == self.optim.num_steps or bool(every and self.step % every == 0)

    def _agreed(self, signal_number: int) -> int:
        """Ranks must stop together: a signal to one is a signal to all."""
        if self.accelerator.num_processes == 1:
            return signal_number
        signals = self.accelerator.gather(torch.tensor([signal_number], device=self.base.device))
        return int(signals.max())

    def _stop_broken(self, result: HostSums, sums: list[DeviceSums], origins: list[list[str]]) -> NoReturn:
        """Names the rows of this step and saves the state before it, with the cursor after them."""
        suspects = [where for part, where in zip(sums, origins, strict=True) if not part.is_finite]
        # A loss that is finite everywhere with a gradient that is not: then every row of the step is a suspect.
        everywhere = gather_object(suspects) or gather_object(origins)
        rows = list(dict.fromkeys(row for where in everywhere for row in where))
        more = f" and {len(rows) - MAX_NAMED_ROWS} more" if len(rows) > MAX_NAMED_ROWS else ""
        self.optimizer.zero_grad(set_to_none=True)
        if all(parameter.isfinite().all() for parameter in self.parameters.values()):
            self.save()
            kept = f"The run is saved as it was before this step; resume={self.folder} goes on after these rows."
        else:
            kept = f"The weights are not finite either; they were not saved, the last save in {self.folder} is whole."
        raise UserError(
            f"Step {self.step + 1}: the loss is not finite (per head: {result.loss_K}, gradient norm "
            f"{result.grad_norm}). Its rows: {', '.join(rows[:MAX_NAMED_ROWS])}{more}. {kept} If it happens again, "
            f"start anew with a lower optim.lr than {self.optim.lr}, or without these rows."
        )
