import { expect, test } from "vitest";
import { BOX, layoutTree, type PlacedNode } from "../src/tree/layout";
import { fitted } from "../src/tree/zoom";
import { makeStep, node, plainStep } from "./made";

const at = (nodes: PlacedNode[], which: number | "bonus") => nodes.find((it) => it.which === which)!;

test("every node and the bonus have a box, and all but the root a line from their parent", () => {
  const { nodes, edges } = layoutTree(makeStep());
  expect(nodes.map((it) => it.which).sort()).toEqual([0, 1, 2, 3, 4, 5, 6, "bonus"]);
  expect(edges).toHaveLength(7);
  for (const edge of edges) {
    expect(edge.to.x).toBe(at(nodes, edge.which).x - BOX.width / 2);
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

test("boxes do not touch and lie inside the picture, in a tree of 64 nodes too", () => {
  const parents = [-1, ...Array.from({ length: 63 }, (_, k) => Math.floor(k / 3))];
  const depths: number[] = [];
  parents.forEach((parent) => depths.push(parent < 0 ? 0 : depths[parent]! + 1));
  const step = makeStep({ nodes: parents.map((parent, k) => node(`t${k}`, parent, depths[k]!, { rank: Math.max(0, k - 1) % 3 })), bonus: null });
  const { nodes, width, height } = layoutTree(step);
  for (const one of nodes) {
    expect(one.x - BOX.width / 2).toBeGreaterThanOrEqual(0);
    expect(one.x + BOX.width / 2).toBeLessThanOrEqual(width);
    expect(one.y + BOX.height / 2).toBeLessThanOrEqual(height);
    for (const other of nodes) {
      if (one !== other && one.x === other.x) expect(Math.abs(one.y - other.y)).toBeGreaterThan(BOX.height);
    }
  }
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
  expect(large.k).toBe(0.7);
  expect(large.x).toBe(0);
  expect(large.applyY(1000)).toBeCloseTo(200);
});
