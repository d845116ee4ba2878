/** A made-up step, shown until a real one comes: how to read the picture. */

import type { Step, TreeNode } from "../protocol/messages";

const guess = (text: string, parent: number, depth: number, rank: number, p: number, isRight = false): TreeNode => ({
  token: 0,
  text,
  parent,
  depth,
  rank,
  p,
  state: isRight ? "accepted" : "rejected",
});

export const EXAMPLE: Step = {
  type: "step",
  id: "example",
  run: "heads",
  i: 0,
  t_ms: 0,
  parts_ms: {},
  nodes: [
    { token: 0, text: " once", parent: -1, depth: 0, rank: 0, p: 1, state: "root" },
    guess(" upon", 0, 1, 0, 0.86, true),
    guess(" more", 0, 1, 1, 0.06),
    guess(" a", 1, 2, 0, 0.93, true),
    guess(" the", 1, 2, 1, 0.04),
    guess(" day", 3, 3, 0, 0.08),
    guess(" hill", 3, 3, 1, 0.03),
  ],
  bonus: { token: 0, text: " time", parent: 3, p: 0.81 },
  text: " upon a time",
  dropped: 0,
  missed: "",
};
