/** Places of the boxes and lines of a step's tree: left to right, a column a depth, the bonus after what was right. */

import { hierarchy, type HierarchyNode } from "d3-hierarchy";
import type { Step } from "../protocol/messages";

export const BOX_HEIGHT = 26;
/** Widths of a box and of a column, on a screen with room and on a phone. */
const WIDTHS = { roomy: { box: 98, column: 138 }, dense: { box: 84, column: 108 } };
const ROW = 38;
const NARROW_ROW = 31; // of trees with many rows
const MANY_ROWS = 9;
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
  boxWidth: number;
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

export function layoutTree(step: Step, room: keyof typeof WIDTHS = "roomy"): Layout {
  const { box, column } = WIDTHS[room];
  const root = hierarchy(branches(step));
  const rows = rowsOf(root);
  const rowHeight = Math.max(...rows.values()) >= MANY_ROWS ? NARROW_ROW : ROW;
  const columnX = (depth: number) => MARGIN + box / 2 + depth * column;
  const rowY = (row: number) => MARGIN + HEADING + BOX_HEIGHT / 2 + row * rowHeight;
  const spot = (node: HierarchyNode<Branch>) => ({ x: columnX(node.depth), y: rowY(rows.get(node)!) });

  const nodes = root.descendants().map((node) => {
    const { which, kind, text, p } = node.data;
    return { which, kind, text, p, depth: node.depth, ...spot(node) };
  });
  const edges = root.links().map(({ source, target }) => {
    const { which, kind, p } = target.data;
    const [from, to] = [spot(source), spot(target)];
    return { which, kind, p, from: { ...from, x: from.x + box / 2 }, to: { ...to, x: to.x - box / 2 } };
  });
  const columns = Array.from({ length: root.height + 1 }, (_, depth) => ({ depth, x: columnX(depth) }));
  const path = nodes.filter((node) => node.kind !== "rejected");
  return {
    nodes,
    edges,
    columns,
    boxWidth: box,
    width: columns.at(-1)!.x + box / 2 + MARGIN,
    height: Math.max(...nodes.map((node) => node.y)) + BOX_HEIGHT / 2 + MARGIN,
    middle: path.reduce((sum, node) => sum + node.y, 0) / path.length,
  };
}

/** The row of every node, from 0 on. A first child stands in its parent's row: the first guesses follow the root in a
 *  straight line, which is how most steps go. Everything else stands as high as it can without lines that cross. */
function rowsOf(root: HierarchyNode<Branch>): Map<HierarchyNode<Branch>, number> {
  const rows = new Map<HierarchyNode<Branch>, number>();
  const free: number[] = Array(root.height + 1).fill(0); // in each column the first row below all that stands there
  const place = (node: HierarchyNode<Branch>, least: number): number => {
    let row = least;
    for (let it: HierarchyNode<Branch> | undefined = node; it; it = it.children?.[0])
      row = Math.max(row, free[it.depth]!);
    rows.set(node, row);
    free[node.depth] = row + 1;
    node.children?.reduce((next, child) => place(child, next) + 1, row);
    return row;
  };
  place(root, 0);
  return rows;
}

/** The step as nested branches, children in the order of their ranks. */
function branches(step: Step): Branch {
  const all = step.nodes.map((node, which): Branch => ({
    which,
    kind: node.state,
    text: node.text,
    p: node.p,
    children: [],
  }));
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
