/** Messages for the tests. */

import type { End, Generate, RunName, Start, Step, TreeNode } from "../src/protocol/messages";

export const node = (text: string, parent: number, depth: number, more: Partial<TreeNode> = {}): TreeNode => ({
  token: text.length,
  text,
  parent,
  depth,
  rank: 0,
  p: 0.5,
  state: parent < 0 ? "root" : "rejected",
  ...more,
});

/** Root, two guesses after it (the first one right), two after each of those (one right), and a bonus. */
export function makeStep(more: Partial<Step> = {}): Step {
  return {
    type: "step",
    id: "g",
    run: "heads",
    i: 0,
    t_ms: 10,
    parts_ms: { verify: 6, draft: 2 },
    nodes: [
      node("root", -1, 0, { p: 1 }),
      node("a", 0, 1, { state: "accepted" }),
      node("b", 0, 1, { rank: 1, p: 0.1 }),
      node("aa", 1, 2, { rank: 1, state: "accepted" }),
      node("ab", 1, 2, { rank: 0 }),
      node("ba", 2, 2),
      node("bb", 2, 2, { rank: 1 }),
    ],
    bonus: { token: 9, text: "next", parent: 3, p: 0.7 },
    text: "aaanext",
    dropped: 0,
    missed: "",
    ...more,
  };
}

export const plainStep = (more: Partial<Step> = {}): Step =>
  makeStep({
    run: "ar",
    nodes: [node("root", -1, 0)],
    bonus: { token: 1, text: "x", parent: 0, p: 1 },
    text: "x",
    ...more,
  });

export const makeStart = (run: RunName = "heads"): Start => ({
  type: "start",
  id: "g",
  run,
  model: "m",
  drafter: run === "ar" ? "none" : "heads",
  seed: 0,
  prompt_tokens: 3,
  queue_ms: 0,
});

export const makeEnd = (run: RunName = "heads", more: Partial<End> = {}): End => ({
  type: "end",
  id: "g",
  run,
  finish_reason: "stop",
  text: "hello",
  ids: [1, 2, 3],
  t_ms: 30,
  steps: 1,
  dropped: 0,
  missed: "",
  ...more,
});

export const makeRequest = (compare = false): Generate => ({
  type: "generate",
  id: "g",
  prompt: "Say hello",
  sampling: { max_tokens: 8, temperature: 0, seed: 0 },
  compare,
});
