/** One box of the tree and the line that leads to it. */

import { scaleSqrt } from "d3-scale";
import { linkHorizontal } from "d3-shape";
import { shorten, visible } from "../trace/visible";
import { percent } from "../trace/words";
import { BOX_HEIGHT, type Kind, type PlacedEdge, type PlacedNode, type Which } from "./layout";

export type Shown = Kind | "unchecked";

/** The box that is looked at. The keyboard's choice is moved into view; what the pointer is on is seen already. */
export interface Chosen {
  which: Which;
  isByKeyboard: boolean;
}

type Spot = { x: number; y: number };
const curve = linkHorizontal<{ source: Spot; target: Spot }, Spot>()
  .x((spot) => spot.x)
  .y((spot) => spot.y);
const lineWidth = scaleSqrt([0, 1], [1, 8]);

export function Edge({ edge, kind }: { edge: PlacedEdge; kind: Shown }) {
  const d = curve({ source: edge.from, target: edge.to }) ?? "";
  return (
    <g className={`edge ${kind}`} data-edge={edge.which}>
      {kind === "accepted" && <path className="casing" d={d} strokeWidth={lineWidth(edge.p) + 7} />}
      <path className="line" d={d} strokeWidth={kind === "unchecked" ? 1.5 : lineWidth(edge.p)} />
    </g>
  );
}

interface BoxProps {
  node: PlacedNode;
  kind: Shown;
  isChosen: boolean;
  onChoose: (chosen: Chosen) => void;
  width: number;
}

export function Box({ node, kind, isChosen, onChoose, width }: BoxProps) {
  const choose = () => onChoose({ which: node.which, isByKeyboard: false });
  return (
    <g
      className={`node ${kind}${isChosen ? " chosen" : ""} depth${Math.min(node.depth, 8)}`}
      data-node={node.which}
      transform={`translate(${node.x},${node.y})`}
      onPointerEnter={choose}
      onClick={choose}
    >
      {isChosen && (
        <rect
          className="ring"
          x={-width / 2 - 4}
          y={-BOX_HEIGHT / 2 - 4}
          width={width + 8}
          height={BOX_HEIGHT + 8}
          rx={11}
        />
      )}
      <rect className="box" x={-width / 2} y={-BOX_HEIGHT / 2} width={width} height={BOX_HEIGHT} rx={8} />
      <text className="token" y={5}>
        {shorten(visible(node.text), 9)}
      </text>
      <Mark kind={kind} x={width / 2 - 2} y={2 - BOX_HEIGHT / 2} />
      <title>{node.kind === "root" ? visible(node.text) : `${visible(node.text)} ${percent(node.p)}`}</title>
    </g>
  );
}

/** The sign at a box's corner: a tick, a cross or a plus, so that nothing hangs on colour alone. */
export function Mark({ kind, x = 0, y = 0 }: { kind: Shown; x?: number; y?: number }) {
  const strokes: Record<string, string> = {
    accepted: "M-4,0.5L-1,3.5L4,-3",
    rejected: "M-3,-3L3,3M3,-3L-3,3",
    bonus: "M-4,0H4M0,-4V4",
  };
  if (!strokes[kind]) return null;
  return (
    <g className={`mark ${kind}`} transform={`translate(${x},${y})`}>
      <circle r={8} />
      <path d={strokes[kind]} />
    </g>
  );
}
