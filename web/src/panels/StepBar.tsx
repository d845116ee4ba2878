/** Pause, slow motion, and the scrubber: a bar a step, as high as the tokens it brought. */

import { scaleLinear } from "d3-scale";
import { memo } from "react";
import type { Controls } from "../play/usePlayer";
import type { Step } from "../protocol/messages";
import { gained } from "../trace/trace";
import { count } from "../trace/words";

interface Props {
  steps: readonly Step[];
  controls: Controls;
}

export function StepBar({ steps, controls }: Props) {
  const { shown, isPlaying, isSlow } = controls;
  const step = steps[shown];
  const isEmpty = steps.length === 0;
  const words = step
    ? `step ${step.i + 1} of ${(steps.at(-1)?.i ?? 0) + 1}: ${count(gained(step), "token")}`
    : "no step yet";
  return (
    <div className="steps" role="group" aria-label="Steps">
      <div className="buttons">
        <button type="button" disabled={isEmpty} onClick={isPlaying ? controls.pause : controls.play}>
          {isPlaying ? "Pause" : "Play"}
        </button>
        <button type="button" aria-pressed={isSlow} disabled={isEmpty} onClick={() => controls.setSlow(!isSlow)}>
          Slow motion
        </button>
        <button type="button" aria-label="Previous step" disabled={shown <= 0} onClick={() => controls.goTo(shown - 1)}>
          ‹
        </button>
        <button
          type="button"
          aria-label="Next step"
          disabled={shown >= steps.length - 1}
          onClick={() => controls.goTo(shown + 1)}
        >
          ›
        </button>
        <span className="where">{words}</span>
      </div>
      <div className="scrubber">
        <Bars steps={steps} shown={shown} />
        <input
          type="range"
          aria-label="Step"
          aria-valuetext={words}
          min={0}
          max={Math.max(0, steps.length - 1)}
          value={Math.max(0, shown)}
          disabled={steps.length < 2}
          onChange={(event) => controls.goTo(Number(event.target.value))}
        />
      </div>
    </div>
  );
}

const Bars = memo(function Bars({ steps, shown }: { steps: readonly Step[]; shown: number }) {
  const most = Math.max(2, ...steps.map(gained));
  const high = scaleLinear([0, most], [0, 40]);
  const slots = Math.max(steps.length, 24);
  return (
    <svg className="bars" viewBox={`0 0 ${slots} 40`} preserveAspectRatio="none" aria-hidden="true">
      {steps.map((step, at) => {
        const tokens = gained(step);
        const bonus = step.bonus ? 1 : 0;
        return (
          <g key={step.i} className={at === shown ? "now" : undefined}>
            <rect className="accepted" x={at + 0.1} width={0.8} y={40 - high(tokens)} height={high(tokens - bonus)} />
            <rect className="bonus" x={at + 0.1} width={0.8} y={40 - high(bonus)} height={high(bonus)} />
          </g>
        );
      })}
      {shown >= 0 && <rect className="cursor" x={shown} width={1} y={0} height={40} />}
    </svg>
  );
});
