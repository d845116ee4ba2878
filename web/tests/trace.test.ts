import { expect, test } from "vitest";
import type { ServerMessage } from "../src/protocol/messages";
import { fromFile, toFile } from "../src/trace/file";
import { extend, fail, gained, isOver, newTrace, runOf } from "../src/trace/trace";
import { makeEnd, makeRequest, makeStart, makeStep, plainStep } from "./made";

const build = (compare: boolean, ...messages: ServerMessage[]) =>
  messages.reduce(extend, newTrace(makeRequest(compare)));

test("start, steps and end make a run", () => {
  const trace = build(false, makeStart(), makeStep(), makeStep({ i: 1 }), makeEnd());
  expect(trace.runs).toHaveLength(1);
  expect(trace.runs[0]!.steps.map((step) => step.i)).toEqual([0, 1]);
  expect(isOver(trace)).toBe(true);
});

test("a trace is not over before its end, and a comparison not before its second one", () => {
  expect(isOver(build(false))).toBe(false);
  expect(isOver(build(false, makeStart(), makeStep()))).toBe(false);
  const first = [makeStart("ar"), plainStep(), makeEnd("ar")];
  expect(isOver(build(true, ...first))).toBe(false);
  const both = build(true, ...first, makeStart(), makeStep(), makeEnd());
  expect(isOver(both)).toBe(true);
  expect(runOf(both, "ar")!.steps).toHaveLength(1);
});

test("a comparison that is cancelled in its first run is over", () => {
  expect(isOver(build(true, makeStart("ar"), makeEnd("ar", { finish_reason: "cancelled" })))).toBe(true);
});

test("messages of another request, and those after the end, change nothing", () => {
  const trace = build(false, makeStart(), makeStep());
  expect(extend(trace, makeStep({ id: "other" }))).toBe(trace);
  const ended = extend(trace, makeEnd());
  expect(extend(ended, makeStep({ i: 1 }))).toBe(ended);
});

test("a step or a start that was there already changes nothing", () => {
  const trace = build(false, makeStart(), makeStep({ i: 1 }));
  for (const again of [makeStep({ i: 1 }), makeStep({ i: 0 }), makeStart()]) expect(extend(trace, again)).toBe(trace);
});

test("steps do not change a trace that is already shown", () => {
  const before = build(false, makeStart(), makeStep());
  extend(before, makeStep({ i: 1 }));
  expect(before.runs[0]!.steps).toHaveLength(1);
});

test("an error ends the run and keeps its steps", () => {
  const trace = build(false, makeStart(), makeStep(), { type: "error", id: "g", message: "too long", code: null });
  expect(isOver(trace)).toBe(true);
  expect(trace.runs[0]).toMatchObject({ failure: "too long", end: null });
  expect(trace.runs[0]!.steps).toHaveLength(1);
});

test("a step gains its accepted nodes and the bonus", () => {
  expect(gained(makeStep())).toBe(3);
  expect(gained(makeStep({ bonus: null }))).toBe(2);
  expect(gained(plainStep())).toBe(1);
});

test("a saved trace opens as the same trace", () => {
  const whole = build(true, makeStart("ar"), plainStep(), makeEnd("ar"), makeStart(), makeStep(), makeEnd());
  expect(fromFile(toFile(whole, new Date(0)))).toEqual(whole);
  const failed = fail(build(false, makeStart(), makeStep()), "The connection was lost.");
  expect(fromFile(toFile(failed, new Date(0)))).toEqual(failed);
});

test("a file that is not a trace says why", () => {
  const file = JSON.parse(toFile(build(false, makeStart(), makeStep(), makeEnd()), new Date(0)));
  expect(() => fromFile("{")).toThrow("must be JSON");
  expect(() => fromFile("[]")).toThrow("the file must be an object");
  expect(() => fromFile("{}")).toThrow("not a trace that the page saved");
  expect(() => fromFile(JSON.stringify({ ...file, v: 2 }))).toThrow("v must be 1");
  expect(() => fromFile(JSON.stringify({ ...file, messages: [] }))).toThrow("this trace is empty");
  file.messages[1].nodes[1].parent = 5;
  expect(() => fromFile(JSON.stringify(file))).toThrow("step.nodes[1].parent must be a number from 0 to 0; got 5");
});
