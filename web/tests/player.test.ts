import { expect, test } from "vitest";
import { atStart, goTo, play, setSlow, tick, type Player } from "../src/play/player";
import { makeStep, plainStep } from "./made";

const steps = [10, 30, 70].map((t_ms, i) => makeStep({ i, t_ms }));

test("live, the newest step is shown at once", () => {
  expect(tick(atStart, steps, true)).toMatchObject({ afterMs: 0, next: { shown: 2 } });
  expect(tick({ ...atStart, shown: 2 }, steps, true)).toBeNull();
});

test("a finished run plays with the pauses that were measured, and stops after its last step", () => {
  expect(tick({ ...atStart, shown: 0 }, steps, false)).toMatchObject({ afterMs: 20, next: { shown: 1 } });
  expect(tick({ ...atStart, shown: 1 }, steps, false)).toMatchObject({ afterMs: 40, next: { shown: 2 } });
  expect(tick({ ...atStart, shown: 2 }, steps, false)).toMatchObject({ next: { isPlaying: false } });
});

test("slow motion shows the guesses before what became of them", () => {
  let player: Player = setSlow({ ...atStart, shown: 2, isPlaying: false }, true, steps, false);
  expect(player).toMatchObject({ shown: 0, isPlaying: true, isUnchecked: true });
  player = tick(player, steps, false)!.next;
  expect(player).toMatchObject({ shown: 0, isUnchecked: false });
  player = tick(player, steps, false)!.next;
  expect(player).toMatchObject({ shown: 1, isUnchecked: true });
});

test("slow motion has nothing to hide in a step without guesses", () => {
  expect(setSlow(atStart, true, [plainStep()], false).isUnchecked).toBe(false);
});

test("a step chosen by hand stops the clock, and is kept inside the run", () => {
  expect(goTo({ ...atStart, shown: 0 }, 7, steps)).toMatchObject({ shown: 2, isPlaying: false });
  expect(goTo({ ...atStart, shown: 0 }, -1, steps)).toMatchObject({ shown: 0, isPlaying: false });
  expect(tick(goTo(atStart, 1, steps), steps, true)).toBeNull();
});

test("play goes on from where it stands, or starts again after the last step", () => {
  expect(play(goTo(atStart, 1, steps), steps, false)).toMatchObject({ shown: 1, isPlaying: true });
  expect(play(goTo(atStart, 2, steps), steps, false)).toMatchObject({ shown: 0, isPlaying: true });
});
