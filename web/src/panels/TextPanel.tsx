/** The answer, each step's tokens underlined as one run. */

import { memo, useEffect, useRef, type MouseEvent } from "react";
import type { Step } from "../protocol/messages";
import { gained } from "../trace/trace";
import { visibleText } from "../trace/visible";

interface Props {
  prompt: string | null;
  isLossless: boolean;
  steps: readonly Step[];
  shown: number;
  /** The step that is shown has not been checked yet: it has brought nothing. */
  isUnchecked: boolean;
  /** Text after the last step, and why the run ended. */
  tail: string;
  note: string | null;
  onGoTo: (at: number) => void;
}

export function TextPanel({ prompt, isLossless, steps, shown, isUnchecked, tail, note, onGoTo }: Props) {
  const box = useRef<HTMLDivElement>(null);
  useEffect(() => keepInView(box.current), [shown, note]);
  const onClick = (event: MouseEvent) => {
    const at = (event.target as Element).closest<HTMLElement>("[data-run]")?.dataset.run;
    if (at !== undefined) onGoTo(Number(at));
  };
  return (
    <section className="panel text" aria-labelledby="text-title">
      <h2 id="text-title">Text</h2>
      <div ref={box} className="scroll" tabIndex={0} role="group" aria-label="The prompt and its answer">
        {prompt === null ? <HowItWorks isLossless={isLossless} /> : <p className="asked">{visibleText(prompt)}</p>}
        <p className="answer" onClick={onClick}>
          {steps.map((step, at) => (
            <Run
              key={step.i}
              step={step}
              at={at}
              when={at > shown || (at === shown && isUnchecked) ? "later" : at === shown ? "now" : "past"}
            />
          ))}
          {visibleText(tail)}
        </p>
        {note && <p className="note">{note}</p>}
      </div>
      <p className="hint">One underline = one pass of the model. Longer is faster. Click one to see its tree.</p>
    </section>
  );
}

function HowItWorks({ isLossless }: { isLossless: boolean }) {
  return (
    <ol className="how">
      <li>
        Something much smaller than the model <b>guesses</b> the next tokens, several at once.
      </li>
      <li>
        The model <b>checks</b> all guesses in one pass.
      </li>
      <li>
        Right ones are <b>kept</b>, and the model adds its own next token.
      </li>
      {isLossless && <li>So the text is the one that the model writes alone, and it is there sooner.</li>}
    </ol>
  );
}

const Run = memo(function Run({ step, at, when }: { step: Step; at: number; when: string }) {
  const length = gained(step) > 1 ? "many" : "one";
  const missed = step.dropped > 0 && (
    <span className="missed" title={`${step.dropped} steps were not shown: the page could not keep up`}>
      {visibleText(step.missed)}
    </span>
  );
  return (
    <>
      {missed}
      <span className={`run ${when} ${length}`} data-run={at}>
        {visibleText(step.text)}
      </span>
    </>
  );
});

/** Scrolls the box, never the page, to the run that is shown; after the last one to the note that ends the text. */
function keepInView(box: HTMLElement | null) {
  const run = box?.querySelector<HTMLElement>(".now");
  if (!box || !run) return;
  const [top, bottom] = [run.offsetTop, run.offsetTop + run.offsetHeight]; // from the box, their offset parent
  if (!run.nextElementSibling) box.scrollTop = box.scrollHeight;
  else if (top < box.scrollTop || bottom > box.scrollTop + box.clientHeight) {
    box.scrollTop = bottom - 0.7 * box.clientHeight;
  }
}
