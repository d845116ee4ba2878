/** One generation as it was seen: the request and its runs, built up message by message. */

import type { End, Generate, RunName, ServerMessage, Start, Step } from "../protocol/messages";

export interface Run {
  start: Start;
  steps: readonly Step[];
  end: End | null;
  /** Why the run ended without an `end`. */
  failure: string | null;
}

export interface Trace {
  request: Generate;
  runs: readonly Run[];
  /** Why no run follows: the request was refused, or the connection was lost. */
  failure: string | null;
}

export const newTrace = (request: Generate): Trace => ({ request, runs: [], failure: null });

/** The trace after a message; the same object where the message does not belong to it. */
export function extend(trace: Trace, message: ServerMessage): Trace {
  if (!("id" in message) || message.id !== trace.request.id) return trace;
  if (message.type === "start") {
    if (runOf(trace, message.run)) return trace;
    const run: Run = { start: message, steps: [], end: null, failure: null };
    return { ...trace, runs: [...trace.runs, run] };
  }
  if (message.type === "error") return fail(trace, message.message);
  const last = trace.runs.at(-1);
  if (!last || last.start.run !== message.run || last.end) return trace;
  if (message.type === "step" && message.i <= (last.steps.at(-1)?.i ?? -1)) return trace;
  const run = message.type === "step" ? { ...last, steps: [...last.steps, message] } : { ...last, end: message };
  return { ...trace, runs: [...trace.runs.slice(0, -1), run] };
}

/** The trace, ended by something else than an `end`. */
export function fail(trace: Trace, failure: string): Trace {
  const last = trace.runs.at(-1);
  const runs = last && !last.end ? [...trace.runs.slice(0, -1), { ...last, failure }] : trace.runs;
  return { ...trace, runs, failure };
}

/** No message of this trace is still to come. */
export function isOver(trace: Trace): boolean {
  const last = trace.runs.at(-1);
  if (trace.failure !== null) return true;
  if (!last?.end) return false;
  return !trace.request.compare || last.start.run === "heads" || last.end.finish_reason === "cancelled";
}

export const runOf = (trace: Trace, name: RunName): Run | null =>
  trace.runs.find((run) => run.start.run === name) ?? null;

/** The tokens that a step added to the answer. */
export function gained(step: Step): number {
  return step.nodes.filter((node) => node.state === "accepted").length + (step.bonus ? 1 : 0);
}

/** The text of the request, for a person. */
export function promptOf(request: Generate): string {
  return request.prompt ?? (request.messages ?? []).map((message) => message.content).join("\n\n");
}
