/** The tree as a picture. The list beside it says the same for keyboards and screen readers. */

import { scaleSqrt } from "d3-scale";
import { linkHorizontal } from "d3-shape";
import { memo, useMemo, useRef } from "react";
import type { Step } from "../protocol/messages";
import { shorten, visible } from "../trace/visible";
import { percent } from "../trace/words";
import { BOX, layoutTree, type Kind, type PlacedEdge, type PlacedNode, type Which } from "./layout";
import { useZoom } from "./zoom";

interface Props {
  step: Step;
  /** The guesses stand there unchecked: nothing says yet which are right. */
  isUnchecked: boolean;
  /** Slow motion: columns fade in one after the other. */
  isSlow: boolean;
  chosen: Chosen | null;
  onChoose: (chosen: Chosen | null) => void;
}

/** The box that is looked at. The keyboard's choice is moved into view; what the pointer is on is seen already. */
export interface Chosen {
  which: Which;
  isByKeyboard: boolean;
}

type Spot = { x: number; y: number };
const curve = linkHorizontal<{ source: Spot; target: Spot }, Spot>().x((spot) => spot.x).y((spot) => spot.y);
export const lineWidth = scaleSqrt([0, 1], [1, 8]);

export const TreeView = memo(function TreeView({ step, isUnchecked, isSlow, chosen, onChoose }: Props) {
  const layout = useMemo(() => layoutTree(step), [step]);
  const svg = useRef<SVGSVGElement>(null);
  const focus = (chosen?.isByKeyboard && layout.nodes.find((node) => node.which === chosen.which)) || null;
  const { transform, zoomBy, fit } = useZoom(svg, layout, focus);
  const kindOf = (kind: Kind): Kind | "unchecked" => (isUnchecked && kind !== "root" ? "unchecked" : kind);
  const edges = [...layout.edges].sort((a, b) => Number(a.kind !== "rejected") - Number(b.kind !== "rejected"));
  const isShown = (kind: Kind) => !(isUnchecked && kind === "bonus");
  return (
    <div className="canvas">
      <svg ref={svg} className={isSlow ? "tree slow" : "tree"} aria-hidden="true" data-step={step.i} onPointerLeave={() => onChoose(null)}>
        <g transform={transform}>
          {layout.columns.map(({ depth, x }) => (
            <text key={depth} className="heading" x={x} y={22}>
              {depth === 0 ? "last token" : `token +${depth}`}
            </text>
          ))}
          {edges.filter((edge) => isShown(edge.kind)).map((edge) => <Edge key={edge.which} edge={edge} kind={kindOf(edge.kind)} />)}
          {layout.nodes.filter((node) => isShown(node.kind)).map((node) => (
            <Box key={node.which} node={node} kind={kindOf(node.kind)} isChosen={node.which === chosen?.which} onChoose={onChoose} />
          ))}
        </g>
      </svg>
      <div className="zoom" role="group" aria-label="Size of the tree">
        <button type="button" aria-label="Smaller" onClick={() => zoomBy(1 / 1.3)}>−</button>
        <button type="button" onClick={fit}>Fit</button>
        <button type="button" aria-label="Larger" onClick={() => zoomBy(1.3)}>+</button>
      </div>
    </div>
  );
});

function Edge({ edge, kind }: { edge: PlacedEdge; kind: string }) {
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
  kind: Kind | "unchecked";
  isChosen: boolean;
  onChoose: (chosen: Chosen) => void;
}

function Box({ node, kind, isChosen, onChoose }: BoxProps) {
  const choose = () => onChoose({ which: node.which, isByKeyboard: false });
  return (
    <g
      className={`node ${kind}${isChosen ? " chosen" : ""} depth${Math.min(node.depth, 8)}`}
      data-node={node.which}
      transform={`translate(${node.x},${node.y})`}
      onPointerEnter={choose}
      onClick={choose}
    >
      {isChosen && <rect className="ring" x={-BOX.width / 2 - 4} y={-BOX.height / 2 - 4} width={BOX.width + 8} height={BOX.height + 8} rx={11} />}
      <rect className="box" x={-BOX.width / 2} y={-BOX.height / 2} width={BOX.width} height={BOX.height} rx={8} />
      <text className="token" y={5}>{shorten(visible(node.text), 9)}</text>
      <Mark kind={kind} />
      <title>{node.kind === "root" ? visible(node.text) : `${visible(node.text)} ${percent(node.p)}`}</title>
    </g>
  );
}

/** The sign at a box's corner: a tick, a cross or a plus, so that nothing hangs on colour alone. */
export function Mark({ kind, x = BOX.width / 2 - 2, y = -BOX.height / 2 + 2 }: { kind: string; x?: number; y?: number }) {
  const strokes: Record<string, string> = { accepted: "M-4,0.5L-1,3.5L4,-3", rejected: "M-3,-3L3,3M3,-3L-3,3", bonus: "M-4,0H4M0,-4V4" };
  if (!strokes[kind]) return null;
  return (
    <g className={`mark ${kind}`} transform={`translate(${x},${y})`}>
      <circle r={8} />
      <path d={strokes[kind]} />
    </g>
  );
}
