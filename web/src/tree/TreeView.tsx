/** The tree as a picture. The list beside it says the same for keyboards and screen readers. */

import { memo, useMemo, useRef } from "react";
import type { Step } from "../protocol/messages";
import { Box, Edge, type Chosen, type Shown } from "./Box";
import { layoutTree, type Kind } from "./layout";
import { useMedia } from "./useMedia";
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

export const TreeView = memo(function TreeView({ step, isUnchecked, isSlow, chosen, onChoose }: Props) {
  const isDense = useMedia("(max-width: 760px)");
  const layout = useMemo(() => layoutTree(step, isDense ? "dense" : "roomy"), [step, isDense]);
  const svg = useRef<SVGSVGElement>(null);
  const focus = (chosen?.isByKeyboard && layout.nodes.find((node) => node.which === chosen.which)) || null;
  const { transform, zoomBy, fit } = useZoom(svg, layout, focus);
  const kindOf = (kind: Kind): Shown => (isUnchecked && kind !== "root" ? "unchecked" : kind);
  const edges = [...layout.edges].sort((a, b) => Number(a.kind !== "rejected") - Number(b.kind !== "rejected"));
  const isShown = (kind: Kind) => !(isUnchecked && kind === "bonus");
  return (
    <div className="canvas">
      <svg
        ref={svg}
        className={isSlow ? "tree slow" : "tree"}
        aria-hidden="true"
        data-step={step.i}
        onPointerLeave={() => onChoose(null)}
      >
        <g transform={transform}>
          {layout.columns.map(({ depth, x }) => (
            <text key={depth} className="heading" x={x} y={22}>
              {depth === 0 ? "last token" : `token +${depth}`}
            </text>
          ))}
          <g key={isSlow ? step.i : "all"}>
            {edges
              .filter((edge) => isShown(edge.kind))
              .map((edge) => (
                <Edge key={edge.which} edge={edge} kind={kindOf(edge.kind)} />
              ))}
            {layout.nodes
              .filter((node) => isShown(node.kind))
              .map((node) => (
                <Box
                  key={node.which}
                  node={node}
                  kind={kindOf(node.kind)}
                  isChosen={node.which === chosen?.which}
                  onChoose={onChoose}
                  width={layout.boxWidth}
                />
              ))}
          </g>
        </g>
      </svg>
      <div className="zoom" role="group" aria-label="Size of the tree">
        <button type="button" aria-label="Smaller" onClick={() => zoomBy(1 / 1.3)}>
          −
        </button>
        <button type="button" onClick={fit}>
          Fit
        </button>
        <button type="button" aria-label="Larger" onClick={() => zoomBy(1.3)}>
          +
        </button>
      </div>
    </div>
  );
});
