/** What a step and its nodes are in words. */

import type { Step } from "../protocol/messages";
import { visible } from "./visible";
import { gained } from "./trace";

/** "6 guesses checked in one pass, 2 right, 3 tokens." */
export function sentence(step: Step): string {
  const guesses = step.nodes.length - 1;
  const right = step.nodes.filter((node) => node.state === "accepted").length;
  const tokens = count(gained(step), "token");
  if (guesses === 0) return `No guesses: one pass, ${tokens}.`;
  return `${count(guesses, "guess", "guesses")} checked in one pass, ${right} right, ${tokens}.`;
}

/** A node before its step was checked. */
export function sentenceBefore(step: Step): string {
  const guesses = step.nodes.length - 1;
  return guesses === 0 ? "No guesses." : `${count(guesses, "guess", "guesses")}, not checked yet.`;
}

export interface Verdict {
  title: string;
  rank: string | null;
  p: string | null;
  outcome: string;
}

/** A node by its index in `step.nodes`, or the bonus. */
export function verdict(step: Step, which: number | "bonus"): Verdict {
  if (which === "bonus") {
    const bonus = step.bonus!;
    return { title: quoted(bonus.text), rank: null, p: percent(bonus.p), outcome: "bonus: the model's own next token" };
  }
  const node = step.nodes[which]!;
  if (node.state === "root")
    return { title: quoted(node.text), rank: null, p: null, outcome: "the last token before this step" };
  const common = { title: quoted(node.text), rank: `guess ${node.rank + 1} for its place`, p: percent(node.p) };
  if (node.state === "accepted") return { ...common, outcome: "right: the model chose it too" };
  return { ...common, outcome: whyRejected(step, which) };
}

function whyRejected(step: Step, which: number): string {
  let at = which;
  while (step.nodes[step.nodes[at]!.parent]!.state === "rejected") at = step.nodes[at]!.parent;
  const parent = step.nodes[at]!.parent;
  const chosen = step.nodes.find((node) => node.parent === parent && node.state === "accepted");
  const winner = chosen ?? (step.bonus?.parent === parent ? step.bonus : null);
  const beaten = winner
    ? `the model chose ${quoted(winner.text)} (${percent(winner.p)})`
    : "the answer ended before it";
  return at === which
    ? `wrong: ${beaten}`
    : `never reached: it follows ${quoted(step.nodes[at]!.text)}, where ${beaten}`;
}

export function percent(p: number): string {
  if (p > 0 && p < 0.001) return "under 0.1%";
  return `${(100 * p).toFixed(p < 0.0995 ? 1 : 0)}%`;
}

export const quoted = (text: string): string => `“${visible(text)}”`;

export function count(number: number, one: string, many = one + "s"): string {
  return `${number} ${number === 1 ? one : many}`;
}
