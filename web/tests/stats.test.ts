import { expect, test } from "vitest";
import { standing } from "../src/play/clock";
import { acceptanceByDepth, compare, tau, timeParts, tokensPerSecond } from "../src/trace/stats";
import type { Run } from "../src/trace/trace";
import { makeEnd, makeStart, makeStep, plainStep } from "./made";

const run = (steps: Run["steps"], end: Run["end"], name: "ar" | "heads" = "heads"): Run => ({
  start: makeStart(name),
  steps,
  end,
  failure: null,
});

test("tau is the mean of tokens a step, and unknown without steps", () => {
  expect(tau([makeStep(), plainStep()])).toBe(2);
  expect(tau([])).toBeNull();
});

test("the speed leaves out the first step and steps after lost ones", () => {
  const steps = [
    makeStep({ t_ms: 500 }),
    makeStep({ i: 1, t_ms: 510 }),
    makeStep({ i: 9, t_ms: 900, dropped: 7 }),
    makeStep({ i: 10, t_ms: 920 }),
  ];
  expect(tokensPerSecond(steps)).toBe(200);
  expect(tokensPerSecond(steps.slice(0, 1))).toBeNull();
});

test("acceptance counts the steps that had guesses at a depth", () => {
  expect(acceptanceByDepth([makeStep(), plainStep()])).toEqual([
    { depth: 1, drafted: 1, accepted: 1 },
    { depth: 2, drafted: 1, accepted: 1 },
  ]);
});

test("parts stand in the order of a step, unknown ones last, without the prompt's reading", () => {
  const parts = timeParts([makeStep({ parts_ms: { grammar: 1, verify: 6, prefill: 90, draft: 2 } }), makeStep()]);
  expect(parts).toEqual([
    { name: "draft", ms: 2 },
    { name: "verify", ms: 6 },
    { name: "grammar", ms: 0.5 },
  ]);
});

test("two answers match when their tokens and texts are equal", () => {
  const plain = run([], makeEnd("ar", { t_ms: 60 }), "ar");
  expect(compare(plain, run([], makeEnd()))).toEqual({ isEqual: true, tokens: 3, agreeing: 3, speedup: 2 });
  expect(compare(plain, run([], makeEnd("heads", { ids: [1, 2, 4] })))).toMatchObject({ isEqual: false, agreeing: 2 });
  expect(compare(plain, run([], makeEnd("heads", { ids: [1, 2] })))).toMatchObject({
    isEqual: false,
    agreeing: 2,
    tokens: 3,
  });
  expect(compare(plain, run([], makeEnd("heads", { finish_reason: "cancelled" })))).toBeNull();
  expect(compare(plain, null)).toBeNull();
});

test("the clock shows what was there at that moment, and the whole text at the end", () => {
  const steps = [makeStep({ t_ms: 10, text: "one" }), makeStep({ i: 1, t_ms: 20, text: " two" })];
  const it = run(steps, makeEnd("heads", { text: "one two", ids: [1, 2, 3, 4, 5, 6], t_ms: 25, steps: 2 }));
  expect(standing(it, 5)).toMatchObject({ text: "", tokens: 0, passes: 0, share: 0 });
  expect(standing(it, 10)).toMatchObject({ text: "one", tokens: 3, share: 0.5, isDone: false });
  expect(standing(it, 25)).toEqual({ text: "one two", tokens: 6, passes: 2, isDone: true, share: 1 });
});
