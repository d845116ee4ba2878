import { expect, test } from "vitest";
import { BOX_HEIGHT, layoutTree, type PlacedNode } from "../src/tree/layout";
import { fitted } from "../src/tree/zoom";
import { makeStep, node, plainStep } from "./made";

const at = (nodes: PlacedNode[], which: number | "bonus") => nodes.find((it) => it.which === which)!;

test("every node and the bonus have a box, and all but the root a line from their parent", () => {
  const { nodes, edges, boxWidth } = layoutTree(makeStep());
  expect(nodes.map((it) => it.which).sort()).toEqual([0, 1, 2, 3, 4, 5, 6, "bonus"]);
  expect(edges).toHaveLength(7);
  for (const edge of edges) {
    expect(edge.to.x).toBe(at(nodes, edge.which).x - boxWidth / 2);
    expect(edge.to.y).toBe(at(nodes, edge.which).y);
  }
});

test("a depth is a column, further right the deeper", () => {
  const { nodes, columns } = layoutTree(makeStep());
  for (const it of nodes) expect(it.x).toBe(columns[it.depth]!.x);
  expect(at(nodes, "bonus").depth).toBe(3);
  expect(columns.map((it) => it.x)).toEqual([...columns.map((it) => it.x)].sort((a, b) => a - b));
});

test("guesses for one place stand in the order of their ranks, the bonus last", () => {
  const { nodes } = layoutTree(makeStep({ bonus: { token: 1, text: "n", parent: 1, p: 0.5 } }));
  expect(at(nodes, 4).y).toBeLessThan(at(nodes, 3).y);
  expect(at(nodes, 3).y).toBeLessThan(at(nodes, "bonus").y);
});

/** Trees of 64 nodes, of any shape. */
const WIDE_AND_DEEP = [1, 2, 3, 4, 5].map((seed) => {
  const nodes = [node("root", -1, 0)];
  const children: number[] = [];
  for (let k = 1, dice = seed; k < 64; k += 1) {
    dice = (dice * 48271) % 2147483647;
    const parent = Math.floor((dice / 2147483647) ** 2 * k);
    children[parent] = (children[parent] ?? -1) + 1;
    nodes.push(node(`t${k}`, parent, nodes[parent]!.depth + 1, { rank: children[parent] }));
  }
  return makeStep({ nodes, bonus: null });
});

test.each(WIDE_AND_DEEP)("boxes do not touch and lie inside the picture", (step) => {
  const { nodes, width, height, boxWidth } = layoutTree(step);
  for (const one of nodes) {
    expect(one.x - boxWidth / 2).toBeGreaterThanOrEqual(0);
    expect(one.x + boxWidth / 2).toBeLessThanOrEqual(width);
    expect(one.y + BOX_HEIGHT / 2).toBeLessThanOrEqual(height);
    for (const other of nodes) {
      if (one !== other && one.x === other.x) expect(Math.abs(one.y - other.y)).toBeGreaterThan(BOX_HEIGHT);
    }
  }
});

test.each(WIDE_AND_DEEP)("lines do not cross, and a first guess stands in its parent's row", (step) => {
  const { nodes, edges } = layoutTree(step);
  for (const one of edges) {
    if (step.nodes[one.which as number]!.rank === 0) expect(one.to.y).toBe(one.from.y);
    for (const other of edges) {
      if (one.from.x === other.from.x && one.from.y < other.from.y) expect(one.to.y).toBeLessThan(other.to.y);
    }
  }
  expect(Math.min(...nodes.map((it) => it.y))).toBe(at(nodes, 0).y);
});

test("a step without guesses is the root and the bonus", () => {
  const { nodes, edges } = layoutTree(plainStep());
  expect(nodes.map((it) => it.kind)).toEqual(["root", "bonus"]);
  expect(edges).toHaveLength(1);
});

test("a step that ended the answer has no bonus", () => {
  expect(layoutTree(makeStep({ bonus: null })).nodes).toHaveLength(7);
});

test("a small tree is fitted whole and centred; a large one stays legible and shows the accepted path", () => {
  const small = fitted({ width: 800, height: 400 }, { width: 800, height: 200, middle: 100 });
  expect([small.k, small.x, small.y]).toEqual([1, 0, 100]);
  const large = fitted({ width: 800, height: 400 }, { width: 4000, height: 2000, middle: 1000 });
  expect(large.k).toBe(0.66);
  expect(large.x).toBe(0);
  expect(large.applyY(1000)).toBeCloseTo(200);
});
