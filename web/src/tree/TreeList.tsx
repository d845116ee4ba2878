/** The tree as nested lists: what a screen reader reads, and where a keyboard walks. Arrows: left to the parent, right
 *  to the first guess that follows, up and down among the guesses for one place. */

import { memo, useRef, type KeyboardEvent } from "react";
import type { Step } from "../protocol/messages";
import { verdict } from "../trace/words";
import type { Which } from "./layout";
import type { Chosen } from "./Box";

interface Props {
  step: Step;
  chosen: Chosen | null;
  onChoose: (chosen: Chosen | null) => void;
}

export const TreeList = memo(function TreeList({ step, chosen, onChoose }: Props) {
  const list = useRef<HTMLUListElement>(null);
  const children = childrenOf(step);
  const wanted = chosen?.which ?? 0;
  const current = (wanted === "bonus" ? step.bonus : step.nodes[wanted]) ? wanted : 0;
  const onKeyDown = (event: KeyboardEvent) => {
    const next = neighbour(step, children, current, event.key);
    if (next === null) return;
    event.preventDefault();
    list.current?.querySelector<HTMLButtonElement>(`[data-item="${next}"]`)?.focus();
  };
  const item = (which: Which) => (
    <li key={which}>
      <button
        type="button"
        data-item={which}
        tabIndex={which === current ? 0 : -1}
        onFocus={() => onChoose({ which, isByKeyboard: true })}
        onBlur={() => onChoose(null)}
      >
        {label(step, which)}
      </button>
      {which !== "bonus" && children[which]!.length > 0 && <ul>{children[which]!.map(item)}</ul>}
    </li>
  );
  return (
    <ul ref={list} className="twin" aria-label="The tree as a list" onKeyDown={onKeyDown}>
      {item(0)}
    </ul>
  );
});

function label(step: Step, which: Which): string {
  const { title, rank, p, outcome } = verdict(step, which);
  return [title, rank, p && `probability ${p}`, outcome].filter(Boolean).join(", ");
}

/** For every node what follows it, in the order of ranks, the bonus last. */
function childrenOf(step: Step): Which[][] {
  const children: number[][] = step.nodes.map(() => []);
  step.nodes.forEach((node, at) => at > 0 && children[node.parent]!.push(at));
  return children.map((list, at): Which[] => {
    list.sort((a, b) => step.nodes[a]!.rank - step.nodes[b]!.rank);
    return step.bonus?.parent === at ? [...list, "bonus"] : list;
  });
}

function neighbour(step: Step, children: Which[][], from: Which, key: string): Which | null {
  const parent = from === "bonus" ? step.bonus!.parent : step.nodes[from]!.parent;
  if (key === "Home") return 0;
  if (key === "ArrowLeft") return parent >= 0 ? parent : null;
  if (key === "ArrowRight") return from === "bonus" ? null : (children[from]![0] ?? null);
  if (key !== "ArrowUp" && key !== "ArrowDown") return null;
  if (parent < 0) return null;
  const siblings = children[parent]!;
  return siblings[siblings.indexOf(from) + (key === "ArrowDown" ? 1 : -1)] ?? null;
}
