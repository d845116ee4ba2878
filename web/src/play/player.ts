/** Which step is shown, and which comes next when: pure, the clock is in usePlayer. */

import type { Step } from "../protocol/messages";

export interface Player {
  /** Index of the step that is shown; -1 before the first. */
  shown: number;
  isPlaying: boolean;
  isSlow: boolean;
  /** Slow motion shows a step twice: its guesses first, then what the check found. */
  isUnchecked: boolean;
}

export const atStart: Player = { shown: -1, isPlaying: true, isSlow: false, isUnchecked: false };

const UNCHECKED_MS = 900;
const CHECKED_MS = 1300;
const LONGEST_WAIT_MS = 2000;

export interface Tick {
  afterMs: number;
  next: Player;
}

/** What happens by itself; null: nothing, until more steps come or somebody presses a button. */
export function tick(player: Player, steps: readonly Step[], isLive: boolean): Tick | null {
  if (!player.isPlaying) return null;
  if (player.isUnchecked) return { afterMs: UNCHECKED_MS, next: { ...player, isUnchecked: false } };
  const last = steps.length - 1;
  if (player.shown >= last) return isLive ? null : { afterMs: 0, next: { ...player, isPlaying: false } };
  if (player.isSlow) return { afterMs: player.shown < 0 ? 0 : CHECKED_MS, next: show(player, player.shown + 1, steps) };
  if (isLive || player.shown < 0) return { afterMs: 0, next: { ...player, shown: isLive ? last : 0 } };
  const wait = steps[player.shown + 1]!.t_ms - steps[player.shown]!.t_ms;
  return { afterMs: Math.min(wait, LONGEST_WAIT_MS), next: { ...player, shown: player.shown + 1 } };
}

/** Goes on, or starts again when all has been shown. */
export function play(player: Player, steps: readonly Step[], isLive: boolean): Player {
  const again = !isLive && player.shown >= steps.length - 1;
  return show({ ...player, isPlaying: true }, again ? 0 : player.shown, steps);
}

export function pause(player: Player): Player {
  return { ...player, isPlaying: false, isUnchecked: false };
}

/** To a step, by hand. */
export function goTo(player: Player, at: number, steps: readonly Step[]): Player {
  return { ...pause(player), shown: Math.max(0, Math.min(steps.length - 1, at)) };
}

/** Slow motion plays by itself; back at full speed it goes on as it was. */
export function setSlow(player: Player, isSlow: boolean, steps: readonly Step[], isLive: boolean): Player {
  if (!isSlow) return { ...player, isSlow, isUnchecked: false };
  return play({ ...player, isSlow }, steps, isLive);
}

function show(player: Player, at: number, steps: readonly Step[]): Player {
  const hasGuesses = (steps[at]?.nodes.length ?? 0) > 1;
  return { ...player, shown: at, isUnchecked: player.isSlow && hasGuesses };
}
