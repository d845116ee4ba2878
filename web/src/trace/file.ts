/** A trace as a file: saved from the page, opened without a server. */

import { BadMessage, listAt, objectAt } from "../protocol/checks";
import type { ServerMessage } from "../protocol/messages";
import { readGenerate, readMessage } from "../protocol/read";
import { extend, fail, newTrace, type Trace } from "./trace";

const FORMAT = "euryale-trace";
const VERSION = 1;
export const MOST_BYTES = 64 * 1024 * 1024;

export function toFile(trace: Trace, saved: Date): string {
  const messages: object[] = [];
  for (const run of trace.runs) {
    messages.push(run.start, ...run.steps);
    if (run.end) messages.push(run.end);
  }
  if (trace.failure !== null) messages.push(asSent(trace.request.id, trace.failure));
  const file = { format: FORMAT, v: VERSION, saved: saved.toISOString(), request: trace.request, messages };
  return JSON.stringify(file) + "\n";
}

/** The trace in a file's text. Throws BadMessage, which says what is wrong with the file. */
export function fromFile(text: string): Trace {
  const it = objectAt(parse(text), "the file");
  if (it.format !== FORMAT) throw new BadMessage(`format must be "${FORMAT}"; this is not a trace that the page saved`);
  if (it.v !== VERSION)
    throw new BadMessage(`v must be ${VERSION}; the trace was saved by another version of the page`);
  let trace = newTrace(readGenerate(it.request));
  for (const value of listAt(it.messages, "messages")) {
    const message: ServerMessage | null = readMessage(value);
    if (message) trace = extend(trace, message);
  }
  if (trace.runs.length === 0) throw new BadMessage("messages must hold a start; this trace is empty");
  const isWhole = trace.failure !== null || trace.runs.at(-1)?.end;
  return isWhole ? trace : fail(trace, "Saved before the answer was complete.");
}

function parse(text: string): unknown {
  try {
    return JSON.parse(text);
  } catch {
    throw new BadMessage("the file must be JSON; it is not, or it was cut off");
  }
}

const asSent = (id: string, message: string) => ({
  type: "error",
  id,
  error: { message, type: "server_error", param: null, code: null },
});
