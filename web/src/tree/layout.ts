/** Where the boxes and lines of a step's tree stand: left to right, a column a depth, the bonus after the accepted path. */

import { hierarchy, tree } from "d3-hierarchy";
import type { Step } from "../protocol/messages";

export const BOX = { width: 98, height: 26 };
const COLUMN = 138;
const ROW = 38;
const NARROW_ROW = 31; // of trees with many leaves
const MANY_LEAVES = 11;
const HEADING = 30;
const MARGIN = 14;

export type Kind = "root" | "accepted" | "rejected" | "bonus";
export type Which = number | "bonus";

export interface PlacedNode {
  which: Which;
  kind: Kind;
  text: string;
  p: number;
  depth: number;
  /** Centre of the box. */
  x: number;
  y: number;
}

export interface PlacedEdge {
  which: Which;
  kind: Kind;
  p: number;
  from: { x: number; y: number };
  to: { x: number; y: number };
}

export interface Layout {
  nodes: PlacedNode[];
  edges: PlacedEdge[];
  columns: { depth: number; x: number }[];
  width: number;
  height: number;
  /** Height of what was accepted, on average: what matters most of a tree that is too large to be seen whole. */
  middle: number;
}

interface Branch {
  which: Which;
  kind: Kind;
  text: string;
  p: number;
  children: Branch[];
}

export function layoutTree(step: Step): Layout {
  const root = hierarchy(branches(step));
  // d3 lays trees out downwards: its x runs across siblings and becomes our y.
  const row = root.leaves().length > MANY_LEAVES ? NARROW_ROW : ROW;
  const placed = tree<Branch>().nodeSize([row, COLUMN]).separation(() => 1)(root);
  const top = Math.min(...placed.descendants().map((node) => node.x));
  const spot = (node: { x: number; y: number }) => ({
    x: MARGIN + BOX.width / 2 + node.y,
    y: MARGIN + HEADING + BOX.height / 2 + node.x - top,
  });
  const nodes = placed.descendants().map(({ data, depth, x, y }) => ({
    which: data.which,
    kind: data.kind,
    text: data.text,
    p: data.p,
    depth,
    ...spot({ x, y }),
  }));
  const edges = placed.links().map(({ source, target }) => ({
    which: target.data.which,
    kind: target.data.kind,
    p: target.data.p,
    from: { x: spot(source).x + BOX.width / 2, y: spot(source).y },
    to: { x: spot(target).x - BOX.width / 2, y: spot(target).y },
  }));
  const columns = Array.from({ length: root.height + 1 }, (_, depth) => ({ depth, x: spot({ x: 0, y: depth * COLUMN }).x }));
  const path = nodes.filter((node) => node.kind !== "rejected");
  return {
    nodes,
    edges,
    columns,
    width: columns.at(-1)!.x + BOX.width / 2 + MARGIN,
    height: Math.max(...nodes.map((node) => node.y)) + BOX.height / 2 + MARGIN,
    middle: path.reduce((sum, node) => sum + node.y, 0) / path.length,
  };
}

/** The step as nested branches, children in the order of their ranks. */
function branches(step: Step): Branch {
  const all = step.nodes.map((node, which): Branch => ({ which, kind: node.state, text: node.text, p: node.p, children: [] }));
  step.nodes.forEach((node, at) => {
    if (at > 0) all[node.parent]!.children.push(all[at]!);
  });
  for (const branch of all) branch.children.sort((a, b) => rankOf(step, a) - rankOf(step, b));
  if (step.bonus) {
    const { text, p, parent } = step.bonus;
    all[parent]!.children.push({ which: "bonus", kind: "bonus", text, p, children: [] });
  }
  return all[0]!;
}

const rankOf = (step: Step, branch: Branch): number => step.nodes[branch.which as number]!.rank;
