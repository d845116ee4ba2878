/** Saves what is shown as a file, and opens such a file, with a server or without. */

import { useRef, type ChangeEvent } from "react";
import { BadMessage } from "../protocol/checks";
import { fromFile, MOST_BYTES, toFile } from "../trace/file";
import type { Trace } from "../trace/trace";

interface Props {
  trace: Trace | null;
  isRunning: boolean;
  onOpen: (trace: Trace) => void;
  onProblem: (why: string) => void;
}

export function TraceButtons({ trace, isRunning, onOpen, onProblem }: Props) {
  const input = useRef<HTMLInputElement>(null);
  const open = async (event: ChangeEvent<HTMLInputElement>) => {
    const file = event.target.files?.[0];
    event.target.value = ""; // the same file can be chosen again
    if (!file) return;
    if (file.size > MOST_BYTES)
      return onProblem(
        `${file.name} has more than ${MOST_BYTES / 1024 / 1024} MiB. Choose a file that this page saved.`,
      );
    try {
      onOpen(fromFile(await file.text()));
    } catch (error) {
      if (!(error instanceof BadMessage)) throw error;
      onProblem(`${file.name} cannot be opened: ${error.message}.`);
    }
  };
  return (
    <div className="buttons trace">
      <button
        type="button"
        disabled={!trace || isRunning || trace.runs.length === 0}
        onClick={() => trace && save(trace)}
      >
        Save trace
      </button>
      <button type="button" disabled={isRunning} onClick={() => input.current?.click()}>
        Open trace
      </button>
      <input ref={input} type="file" accept=".json,application/json" hidden aria-label="Trace file" onChange={open} />
    </div>
  );
}

function save(trace: Trace) {
  const now = new Date();
  const url = URL.createObjectURL(new Blob([toFile(trace, now)], { type: "application/json" }));
  const link = document.createElement("a");
  link.href = url;
  link.download = `euryale-${now.toISOString().slice(0, 19).replaceAll(":", "")}.json`;
  link.click();
  setTimeout(() => URL.revokeObjectURL(url), 10_000);
}
