import { expect, test } from "vitest";
import { readFrame, readMessage } from "../src/protocol/read";
import { makeEnd, makeStart, makeStep } from "./made";

test("every message of the protocol is read as it was sent", () => {
  for (const message of [makeStart(), makeStep(), makeStep({ bonus: null }), makeEnd()]) {
    expect(readMessage(JSON.parse(JSON.stringify(message)))).toEqual(message);
  }
});

test("types and fields that a later version may add are passed over", () => {
  expect(readMessage({ type: "weather" })).toBeNull();
  expect(readMessage({ type: "constructor" })).toBeNull();
  expect(readMessage({ ...makeStart(), later: 1 })).toEqual(makeStart());
});

test("a server that says nothing of its rule is lossless", () => {
  const ready = { type: "ready", v: 1, model: "m", drafter: "heads", max_model_len: 10, chat: true, version: "1" };
  expect(readMessage(ready)).toMatchObject({ lossless: true });
  expect(readMessage({ ...ready, lossless: false })).toMatchObject({ lossless: false });
});

test.each([
  ["nodes", [], "must hold the root"],
  ["nodes", [{ ...makeStep().nodes[0], p: 1.5 }], "nodes[0].p"],
  ["nodes", [{ ...makeStep().nodes[0], text: 3 }], "nodes[0].text"],
  ["nodes", [makeStep().nodes[0], { ...makeStep().nodes[1], depth: 2 }], "nodes[1].depth must be 1"],
  ["nodes", [{ ...makeStep().nodes[0], state: "accepted" }], "nodes[0].state"],
  ["bonus", { token: 1, text: "", parent: 7, p: 1 }, "bonus.parent"],
  ["t_ms", -1, "t_ms"],
  ["parts_ms", { draft: null }, "parts_ms.draft"],
  ["run", "both", "step.run"],
])("a step whose %s is wrong is refused by the field's name", (field, value, why) => {
  expect(() => readMessage({ ...makeStep(), [field]: value })).toThrow(why);
});

test("a frame that is not JSON is refused, not thrown through", () => {
  expect(() => readFrame("{")).toThrow("a frame must be JSON");
  expect(() => readFrame(new ArrayBuffer(1))).toThrow("a frame must be a string");
});
