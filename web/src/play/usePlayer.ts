/** The player with a clock. */

import { useEffect, useState } from "react";
import type { Step } from "../protocol/messages";
import { atStart, goTo, pause, play, setSlow, tick, type Player } from "./player";

export interface Controls extends Player {
  play: () => void;
  pause: () => void;
  goTo: (at: number) => void;
  setSlow: (isSlow: boolean) => void;
}

/** `key` names the run: another one begins at its start. */
export function usePlayer(key: string, steps: readonly Step[], isLive: boolean): Controls {
  const [state, setState] = useState({ key, player: atStart });
  const isOther = state.key !== key;
  const player = isOther ? { ...atStart, isSlow: state.player.isSlow } : state.player;
  const set = (next: Player) => setState({ key, player: next });

  useEffect(() => {
    const due = tick(player, steps, isLive);
    if (!due) return;
    const timer = setTimeout(() => set(due.next), due.afterMs);
    return () => clearTimeout(timer);
    // Steps that come while a wait runs do not start it again: only what decides about the wait is named.
  }, [
    key,
    isOther,
    player.shown,
    player.isPlaying,
    player.isSlow,
    player.isUnchecked,
    isLive,
    isLive && player.shown >= steps.length - 1,
    isFollowing(player, isLive) && steps.length,
  ]);

  return {
    ...player,
    play: () => set(play(player, steps, isLive)),
    pause: () => set(pause(player)),
    goTo: (at) => set(goTo(player, at, steps)),
    setSlow: (isSlow) => set(setSlow(player, isSlow, steps, isLive)),
  };
}

const isFollowing = (player: Player, isLive: boolean): boolean => isLive && player.isPlaying && !player.isSlow;
