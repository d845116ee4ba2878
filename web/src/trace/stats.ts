/** Figures of a run, from the steps that were seen. */

import type { Step } from "../protocol/messages";
import { gained, type Run } from "./trace";

/** Mean tokens a step, the bonus included. */
export function tau(steps: readonly Step[]): number | null {
  return steps.length ? sum(steps.map(gained)) / steps.length : null;
}

/** Tokens a second between the first step's end and the last one's: the prompt is read in the first. A step that
 *  follows lost ones does not count, because its tokens are not all that its time brought. */
export function tokensPerSecond(steps: readonly Step[]): number | null {
  let tokens = 0;
  let ms = 0;
  for (let at = 1; at < steps.length; at += 1) {
    const step = steps[at]!;
    if (step.dropped) continue;
    tokens += gained(step);
    ms += step.t_ms - steps[at - 1]!.t_ms;
  }
  return ms > 0 ? (1000 * tokens) / ms : null;
}

export interface DepthShare {
  depth: number;
  /** Steps that had guesses at this depth. */
  drafted: number;
  /** Steps in which one of them was right. */
  accepted: number;
}

export function acceptanceByDepth(steps: readonly Step[]): DepthShare[] {
  const shares: DepthShare[] = [];
  for (const step of steps) {
    const drafted = new Set<number>();
    const accepted = new Set<number>();
    for (const node of step.nodes) {
      if (node.state === "root") continue;
      drafted.add(node.depth);
      if (node.state === "accepted") accepted.add(node.depth);
    }
    for (const depth of drafted) {
      const share = (shares[depth - 1] ??= { depth, drafted: 0, accepted: 0 });
      share.drafted += 1;
      share.accepted += accepted.has(depth) ? 1 : 0;
    }
  }
  return shares.filter(Boolean);
}

export interface PartTime {
  name: string;
  /** Mean milliseconds a step. */
  ms: number;
}

const ORDER = ["prefill", "draft", "verify", "accept", "commit"];

/** Where a step's time goes. The prompt's reading is not part of a step and is left out. */
export function timeParts(steps: readonly Step[]): PartTime[] {
  const totals = new Map<string, number>();
  for (const step of steps) {
    for (const [name, ms] of Object.entries(step.parts_ms)) totals.set(name, (totals.get(name) ?? 0) + ms);
  }
  totals.delete("prefill");
  const place = (name: string) => (ORDER.includes(name) ? ORDER.indexOf(name) : ORDER.length);
  return [...totals]
    .map(([name, ms]) => ({ name, ms: ms / steps.length }))
    .sort((a, b) => place(a.name) - place(b.name));
}

export interface Comparison {
  isEqual: boolean;
  /** Tokens of the longer answer. */
  tokens: number;
  /** How many tokens from the start are equal. */
  agreeing: number;
  /** Time of plain decoding over the time with guesses. */
  speedup: number | null;
}

/** Two finished answers to one prompt; null while one is missing or was stopped by hand. */
export function compare(plain: Run | null, guessing: Run | null): Comparison | null {
  const [a, b] = [plain?.end, guessing?.end];
  if (!a || !b || a.finish_reason === "cancelled" || b.finish_reason === "cancelled") return null;
  const most = Math.max(a.ids.length, b.ids.length);
  let agreeing = 0;
  while (agreeing < most && a.ids[agreeing] === b.ids[agreeing]) agreeing += 1;
  const isEqual = agreeing === most && a.text === b.text;
  return { isEqual, tokens: most, agreeing, speedup: b.t_ms > 0 ? a.t_ms / b.t_ms : null };
}

const sum = (values: readonly number[]): number => values.reduce((total, value) => total + value, 0);
