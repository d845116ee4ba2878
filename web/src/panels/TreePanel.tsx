/** The middle of the page: the tree of one step, the sentence that says what it shows, and what the chosen box is. */

import { useState, type ReactNode } from "react";
import type { Controls } from "../play/usePlayer";
import type { Step } from "../protocol/messages";
import { sentence, sentenceBefore, verdict } from "../trace/words";
import { Mark, type Chosen, type Shown } from "../tree/Box";
import { EXAMPLE } from "../tree/example";
import { TreeList } from "../tree/TreeList";
import { TreeView } from "../tree/TreeView";
import { StepBar } from "./StepBar";

interface Props {
  steps: readonly Step[];
  controls: Controls;
}

export function TreePanel({ steps, controls }: Props) {
  const [chosen, choose] = useState<Chosen | null>(null);
  const [isListed, setListed] = useState(false);
  const real = steps[controls.shown];
  const step = real ?? EXAMPLE;
  const isUnchecked = real !== undefined && controls.isUnchecked;
  const known = chosen && (chosen.which === "bonus" ? step.bonus : step.nodes[chosen.which]) ? chosen : null;
  return (
    <section className="panel middle" aria-labelledby="tree-title">
      <h2 id="tree-title">{real ? `Step ${real.i + 1}` : "How to read it: an example"}</h2>
      <p className="sentence" id="sentence">
        {isUnchecked ? sentenceBefore(step) : sentence(step)}
      </p>
      <TreeView step={step} isUnchecked={isUnchecked} isSlow={controls.isSlow} chosen={known} onChoose={choose} />
      <Detail step={step} chosen={isUnchecked ? null : known} />
      <Legend>
        <button type="button" className="quiet" aria-expanded={isListed} onClick={() => setListed(!isListed)}>
          {isListed ? "Hide the list" : "Show as a list"}
        </button>
      </Legend>
      <StepBar steps={steps} controls={controls} />
      <div className={isListed ? "listed" : "listed unseen"}>
        <TreeList step={step} chosen={known} onChoose={choose} />
      </div>
    </section>
  );
}

function Detail({ step, chosen }: { step: Step; chosen: Chosen | null }) {
  if (!chosen) return <p className="detail">Point at a box, or walk through the tree with Tab and the arrow keys.</p>;
  const { title, rank, p, outcome } = verdict(step, chosen.which);
  return (
    <p className="detail" id="detail">
      <strong className="token">{title}</strong>
      {rank && <span>{rank}</span>}
      {p && <span>p = {p}</span>}
      <span>{outcome}</span>
    </p>
  );
}

function Legend({ children }: { children: ReactNode }) {
  return (
    <div className="reading">
      <ul className="legend">
        <Entry kind="accepted">right guess</Entry>
        <Entry kind="rejected">wrong guess</Entry>
        <Entry kind="bonus">the model’s own next token</Entry>
        <li>
          <svg viewBox="0 0 34 18" width={34} height={18} aria-hidden="true">
            <path className="wedge" d="M1,9L33,5V13Z" />
          </svg>
          thicker line: likelier
        </li>
      </ul>
      {children}
    </div>
  );
}

function Entry({ kind, children }: { kind: Shown; children: string }) {
  return (
    <li>
      <svg viewBox="-9 -9 18 18" width={18} height={18} aria-hidden="true">
        <Mark kind={kind} />
      </svg>
      {children}
    </li>
  );
}
