import { expect, test } from "vitest";
import { shorten, visible, visibleText } from "../src/trace/visible";
import { percent, sentence, verdict } from "../src/trace/words";
import { makeStep, plainStep } from "./made";

test("the sentence counts guesses, right ones and tokens", () => {
  expect(sentence(makeStep())).toBe("6 guesses checked in one pass, 2 right, 3 tokens.");
  expect(sentence(plainStep())).toBe("No guesses: one pass, 1 token.");
});

test("a rejected node names the token that beat it", () => {
  expect(verdict(makeStep(), 2).outcome).toBe("wrong: the model chose “a” (50%)");
  expect(verdict(makeStep(), 4).outcome).toBe("wrong: the model chose “aa” (50%)");
  expect(verdict(makeStep({ bonus: { token: 1, text: "n", parent: 3, p: 0.7 } }), "bonus").outcome).toContain(
    "own next token",
  );
});

test("a node after a rejected one was never reached, and says where its path left the text", () => {
  expect(verdict(makeStep(), 5).outcome).toBe("never reached: it follows “b”, where the model chose “a” (50%)");
});

test("a rejected node after the end of the answer says so", () => {
  const step = makeStep({ bonus: null });
  step.nodes.push({ token: 1, text: "z", parent: 3, depth: 3, rank: 0, p: 0.1, state: "rejected" });
  expect(verdict(step, 7).outcome).toBe("wrong: the answer ended before it");
});

test.each([
  [" the", "·the"],
  ["\n\n", "↵↵"],
  ["a\0b\r", "a‹U+0000›b‹U+000D›"],
  ["\u202eevil", "‹U+202E›evil"],
  ["\u200b", "‹U+200B›"],
  ["\u{e0041}", "‹U+E0041›"],
  ["\u0301", "◌\u0301"],
  ["<img src=x>", "<img·src=x>"],
  ["naïve 日本", "naïve·日本"],
])("the token %j is shown as %j", (token, shown) => {
  expect(visible(token)).toBe(shown);
});

test("running text keeps lines, spaces and emoji, and spells out what turns it around", () => {
  expect(visibleText("a b\n\tc")).toBe("a b\n\tc");
  expect(visibleText("👩‍💻")).toBe("👩‍💻");
  expect(visibleText("\u202eab\u2066\0")).toBe("‹U+202E›ab‹U+2066›‹U+0000›");
});

test("long tokens are cut by the room they take", () => {
  expect(shorten("abcdefghi", 9)).toBe("abcdefghi");
  expect(shorten("abcdefghij", 9)).toBe("abcdefgh…");
  expect(shorten("日本語日本語", 9)).toBe("日本語…");
});

test("probabilities keep the digits that matter", () => {
  expect([1, 0.5, 0.041, 0.0004, 0].map(percent)).toEqual(["100%", "50%", "4.1%", "under 0.1%", "0.0%"]);
});
