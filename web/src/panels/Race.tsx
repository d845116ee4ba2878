/** Plain decoding and decoding with guesses, side by side on one clock. They ran one after the other: at the same time
 *  they would have taken each other's processors. */

import { useEffect, useState } from "react";
import { lengthMs, standing } from "../play/clock";
import { compare } from "../trace/stats";
import type { Run } from "../trace/trace";
import { count } from "../trace/words";
import { visibleText } from "../trace/visible";

interface Props {
  plain: Run | null;
  guessing: Run | null;
}

const SPEEDS = [1, 0.5, 0.25, 0.1];

export function Race({ plain, guessing }: Props) {
  const isReady = Boolean(plain?.end && guessing?.end);
  const [speed, setSpeed] = useState(1);
  const whole = Math.max(plain ? lengthMs(plain) : 0, guessing ? lengthMs(guessing) : 0);
  const clock = useClock(isReady, whole, speed);
  const result = compare(plain, guessing);
  return (
    <section className="panel race" aria-labelledby="race-title">
      <h2 id="race-title">Side by side</h2>
      <p className="hint">Both runs were timed alone, one after the other, and are replayed here on one clock.</p>
      <div className="buttons">
        <button type="button" disabled={!isReady} onClick={clock.isOn ? clock.stop : clock.start}>
          {clock.isOn ? "Stop" : "Replay"}
        </button>
        <label className="field inline">
          <span>Speed</span>
          <select value={speed} onChange={(event) => setSpeed(Number(event.target.value))}>
            {SPEEDS.map((it) => (
              <option key={it} value={it}>
                {it === 1 ? "as measured" : `${1 / it} × slower`}
              </option>
            ))}
          </select>
        </label>
        <span className="where">{(clock.ms / 1000).toFixed(2)} s</span>
        {result && <Badge {...result} />}
      </div>
      <div className="lanes">
        <Lane name="Plain: one token a pass" className="plain" run={plain} ms={clock.ms} />
        <Lane name="With guesses" className="guessing" run={guessing} ms={clock.ms} />
      </div>
    </section>
  );
}

function Badge({ isEqual, tokens, agreeing, speedup }: NonNullable<ReturnType<typeof compare>>) {
  return (
    <div className="result" role="status">
      <p className={isEqual ? "badge equal" : "badge other"}>
        {isEqual
          ? `✓ Exact match: all ${count(tokens, "token")} equal`
          : `✕ The texts differ from token ${agreeing + 1} on`}
      </p>
      {speedup !== null && <p className="speedup">{speedup.toFixed(2)} × as fast</p>}
    </div>
  );
}

function Lane({ name, className, run, ms }: { name: string; className: string; run: Run | null; ms: number }) {
  const now = run && standing(run, ms);
  return (
    <div className={`lane ${className}`}>
      <h3>{name}</h3>
      <svg className="progress" viewBox="0 0 100 6" preserveAspectRatio="none" aria-hidden="true">
        <rect className="track" width={100} height={6} />
        <rect className="share" width={100 * (now?.share ?? 0)} height={6} />
      </svg>
      <p className="count">{run ? progress(run, ms) : "not run yet"}</p>
      <p className="scroll answer" tabIndex={0} role="group" aria-label={`Text: ${name}`}>
        {now && visibleText(now.text)}
      </p>
    </div>
  );
}

function progress(run: Run, ms: number): string {
  const { tokens, passes, isDone } = standing(run, ms);
  const sofar = `${count(tokens, "token")} in ${count(passes, "pass", "passes")}`;
  return isDone ? `${sofar}, done after ${(lengthMs(run) / 1000).toFixed(2)} s` : sofar;
}

interface Clock {
  ms: number;
  isOn: boolean;
  start: () => void;
  stop: () => void;
}

/** Starts by itself once both runs are there; rests at the end, where both texts are whole. */
function useClock(isReady: boolean, whole: number, speed: number): Clock {
  const [ms, setMs] = useState(0);
  const [isOn, setOn] = useState(false);
  useEffect(() => {
    setMs(0);
    setOn(isReady);
  }, [isReady]);
  useEffect(() => {
    if (!isOn) return;
    let before = performance.now();
    let frame = requestAnimationFrame(function turn(now) {
      setMs((at) => Math.min(whole, at + speed * (now - before)));
      before = now;
      frame = requestAnimationFrame(turn);
    });
    return () => cancelAnimationFrame(frame);
  }, [isOn, whole, speed]);
  useEffect(() => {
    if (isOn && whole > 0 && ms >= whole) setOn(false);
  }, [isOn, ms, whole]);
  return {
    ms,
    isOn,
    start: () => {
      setMs(0);
      setOn(true);
    },
    stop: () => setOn(false),
  };
}
