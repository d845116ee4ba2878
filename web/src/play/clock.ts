/** Two runs on one clock: what each had written after so many milliseconds. */

import type { Run } from "../trace/trace";
import { gained } from "../trace/trace";

export interface Standing {
  text: string;
  tokens: number;
  passes: number;
  isDone: boolean;
  /** Share of its own whole answer, 0 to 1. */
  share: number;
}

export const lengthMs = (run: Run): number => run.end?.t_ms ?? run.steps.at(-1)?.t_ms ?? 0;

export function standing(run: Run, ms: number): Standing {
  const isDone = ms >= lengthMs(run);
  const steps = isDone ? run.steps : run.steps.filter((step) => step.t_ms <= ms);
  const tokens = steps.reduce((sum, step) => sum + gained(step), 0);
  const whole = run.steps.reduce((sum, step) => sum + gained(step), 0);
  return {
    text: isDone && run.end ? run.end.text : steps.map((step) => step.missed + step.text).join(""),
    tokens: isDone && run.end ? run.end.ids.length : tokens,
    passes: isDone && run.end ? run.end.steps : steps.length,
    isDone,
    share: isDone ? 1 : whole > 0 ? tokens / whole : 0,
  };
}
