"""Prometheus metrics under vLLM's names, so that its dashboards show this server too; `euryale:` are our own.

Everything is counted in the event loop, from the reports of the engine thread.
"""

from collections.abc import Sequence

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, generate_latest

from euryale.server.backend import BackendInfo, Ending, Job
from euryale.server.collector import Timing
from euryale.server.tickets import Report

CONTENT_TYPE = "text/plain; version=0.0.4; charset=utf-8"
_SHORT = (0.001, 0.002, 0.005, 0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 1.0, 2.0, 5.0, 10.0)
_LONG = (0.01, 0.05, 0.1, 0.2, 0.5, 1.0, 2.0, 5.0, 10.0, 20.0, 60.0, 120.0, 300.0, 600.0)
_TOKENS = (1, 2, 5, 10, 20, 50, 100, 200, 500, 1000, 2000, 5000, 10000, 20000, 50000, 100000)
_NODES = (1, 2, 4, 6, 8, 12, 16, 24, 32, 48, 64, 128)


class Metrics:
    """All metrics of one server, in a registry of their own."""

    def __init__(self, model: str, info: BackendInfo) -> None:
        self._registry = CollectorRegistry()
        self._model = model
        self._row_slots = info.num_rows * info.row_tokens
        self._last_token: dict[Job, float] = {}  # when each live job's last token came
        self._held: dict[Job, int] = {}  # tokens in the row of each live job
        self._parts: dict[str, Counter] = {}
        self.running = self._gauge("vllm:num_requests_running", "Sequences that are decoded.")
        self.waiting = self._gauge("vllm:num_requests_waiting", "Sequences that wait for a row.")
        self.cache_usage = self._gauge("vllm:kv_cache_usage_perc", "Share of the KV cache that holds tokens, 0 to 1.")
        self.prompt_tokens = self._counter("vllm:prompt_tokens", "Prompt tokens read.")
        self.generation_tokens = self._counter("vllm:generation_tokens", "Tokens written.")
        self.preemptions = self._counter("vllm:num_preemptions", "Rows taken from a live request: never here.")
        self.success = self._family("vllm:request_success", "Sequences that ended.", "finished_reason")
        self.first_token = self._histogram("vllm:time_to_first_token_seconds", "From submission.", _LONG)
        self.between_tokens = self._histogram("vllm:inter_token_latency_seconds", "Mean in each step.", _SHORT)
        self.latency = self._histogram("vllm:e2e_request_latency_seconds", "From submission to the end.", _LONG)
        self.queue_time = self._histogram("vllm:request_queue_time_seconds", "From submission to a row.", _LONG)
        self.prefill_time = self._histogram("vllm:request_prefill_time_seconds", "From a row to a token.", _LONG)
        self.decode_time = self._histogram("vllm:request_decode_time_seconds", "From the first token on.", _LONG)
        self.inference_time = self._histogram("vllm:request_inference_time_seconds", "From a row to the end.", _LONG)
        self.prompt_length = self._histogram("vllm:request_prompt_tokens", "Of a sequence.", _TOKENS)
        self.answer_length = self._histogram("vllm:request_generation_tokens", "Of a sequence.", _TOKENS)
        self.asked_length = self._histogram("vllm:request_params_max_tokens", "Of a sequence.", _TOKENS)
        self.drafts = self._counter("vllm:spec_decode_num_drafts", "Steps of a sequence that had drafted tokens.")
        self.drafted = self._counter("vllm:spec_decode_num_draft_tokens", "Nodes of their trees, roots excluded.")
        self.accepted = self._counter("vllm:spec_decode_num_accepted_tokens", "Drafted tokens that were accepted.")
        self.accepted_at = self._family(
            "vllm:spec_decode_num_accepted_tokens_per_pos", "The same by depth, from 0.", "position"
        )
        self.step_seconds = self._family("euryale:step_seconds", "Time of the engine's steps.", "part")
        self.tree_nodes = self._histogram("euryale:tree_nodes", "Nodes of a row's tree in a step.", _NODES)
        self.cancelled = self._family("euryale:cancelled", "Requests that were not finished.", "reason")
        self.restarts = self._counter("euryale:engine_restarts", "Steps that failed, after which it was made anew.")
        for position in range(info.max_depth):
            self.accepted_at.labels(model_name=model, position=str(position))
        for reason in ("stop", "length"):
            self.success.labels(model_name=model, finished_reason=reason)

    def exposition(self) -> bytes:
        """The text that Prometheus reads."""
        return generate_latest(self._registry)

    def cancel(self, reason: str) -> None:
        self.cancelled.labels(model_name=self._model, reason=reason).inc()

    def observe(self, report: Report) -> None:
        """Counts what a step brought."""
        self.running.set(report.num_live)
        self.waiting.set(report.num_waiting)
        if report.is_restart:
            self.restarts.inc()
        if report.num_rows:
            self.tree_nodes.observe(report.num_nodes)
            for part, seconds in report.seconds.items():
                self._part(part).inc(seconds)
        for ticket in report.admitted:
            self._held[ticket.job] = len(ticket.job.prompt)
            self.prompt_tokens.inc(len(ticket.job.prompt))
            self.queue_time.observe(report.at - ticket.collector.timings[ticket.place].submitted)
        for ticket, progress in report.progress:
            timing, num = ticket.collector.timings[ticket.place], len(progress.ids)
            if num:
                self._observe_gap(ticket.job, timing, num, report.at)
            if progress.ending is not None:
                self._observe_end(len(ticket.job.prompt), ticket.job.max_tokens, progress.ending, timing)
        self.generation_tokens.inc(sum(len(progress.ids) for _, progress in report.progress))
        for job in report.gone:
            self._held.pop(job, None)
            self._last_token.pop(job, None)
        self.cache_usage.set(sum(self._held.values()) / self._row_slots)

    def _part(self, part: str) -> Counter:
        """The counter of a part of the steps; looked up once, because this is asked after every step."""
        if part not in self._parts:
            self._parts[part] = self.step_seconds.labels(model_name=self._model, part=part)
        return self._parts[part]

    def _observe_gap(self, job: Job, timing: Timing, num_tokens: int, now: float) -> None:
        """The gap before a step is shared by its tokens; the first token has a metric of its own."""
        before = self._last_token.get(job)
        if before is None:
            self.first_token.observe(now - timing.submitted)
        else:
            self.between_tokens.observe((now - before) / num_tokens)
        self._last_token[job] = now
        self._held[job] = self._held.get(job, 0) + num_tokens

    def _observe_end(self, num_prompt: int, max_tokens: int, ending: Ending, timing: Timing) -> None:
        self.success.labels(model_name=self._model, finished_reason=ending.shown_reason).inc()
        self.prompt_length.observe(num_prompt)
        self.answer_length.observe(len(ending.ids))
        self.asked_length.observe(max_tokens)
        if timing.admitted is not None and timing.first_token is not None and timing.ended is not None:
            self.latency.observe(timing.ended - timing.submitted)
            self.prefill_time.observe(timing.first_token - timing.admitted)
            self.decode_time.observe(timing.ended - timing.first_token)
            self.inference_time.observe(timing.ended - timing.admitted)
        for gained, nodes in zip(ending.accepted, ending.nodes, strict=True):
            if nodes > 1:
                self.drafts.inc()
                self.drafted.inc(nodes - 1)
                self.accepted.inc(max(gained - 1, 0))
                for position in range(gained - 1):
                    self.accepted_at.labels(model_name=self._model, position=str(position)).inc()

    def _counter(self, name: str, meaning: str) -> Counter:
        return self._family(name, meaning).labels(model_name=self._model)

    def _family(self, name: str, meaning: str, *labels: str) -> Counter:
        return Counter(name, meaning, ["model_name", *labels], registry=self._registry)

    def _gauge(self, name: str, meaning: str) -> Gauge:
        return Gauge(name, meaning, ["model_name"], registry=self._registry).labels(model_name=self._model)

    def _histogram(self, name: str, meaning: str, buckets: Sequence[float]) -> Histogram:
        histogram = Histogram(name, meaning, ["model_name"], registry=self._registry, buckets=buckets)
        return histogram.labels(model_name=self._model)
