/** The page: prompt above, then text, tree and figures side by side, and the comparison below. */

import { useState } from "react";
import { Figures } from "./panels/Figures";
import { KeyForm } from "./panels/KeyForm";
import { PromptForm } from "./panels/PromptForm";
import { Race } from "./panels/Race";
import { TextPanel } from "./panels/TextPanel";
import { TraceButtons } from "./panels/TraceButtons";
import { TreePanel } from "./panels/TreePanel";
import { usePlayer } from "./play/usePlayer";
import type { Link } from "./protocol/connection";
import type { Ready } from "./protocol/messages";
import { sentence } from "./trace/words";
import { promptOf, runOf, type Run, type Trace } from "./trace/trace";
import { useSession } from "./useSession";

export function App() {
  const session = useSession();
  const { trace, ready, isRunning } = session;
  const [picked, pick] = useState<{ id: string; at: number } | null>(null);
  const at = picked && picked.id === trace?.request.id ? picked.at : (trace?.runs.length ?? 0) - 1;
  const run = trace?.runs[at] ?? null;
  const isLive = isRunning && at === trace!.runs.length - 1;
  const steps = run?.steps ?? [];
  const controls = usePlayer(`${trace?.request.id}/${at}`, steps, isLive);
  const step = steps[controls.shown];

  return (
    <>
      <header>
        <h1>Euryale</h1>
        <p className="tagline">
          Guesses several tokens, checks them in one pass, keeps what is right
          {(ready?.lossless ?? true) && ": the same text, sooner"}.
        </p>
        <LinkState link={session.link} ready={ready} />
      </header>
      <main>
        {session.link === "refused" && <KeyForm onKey={session.useKey} />}
        {session.notice && (
          <p className="panel alert" role="alert">
            {session.notice}
          </p>
        )}
        <PromptForm
          ready={session.link === "ready" ? ready : null}
          isRunning={isRunning}
          onGenerate={session.generate}
          onCancel={session.cancel}
        />
        {trace && trace.runs.length > 1 && (
          <Runs trace={trace} at={at} onPick={(to) => pick({ id: trace.request.id, at: to })} />
        )}
        <div className="columns">
          <TextPanel
            prompt={trace && promptOf(trace.request)}
            isLossless={ready?.lossless ?? true}
            steps={steps}
            shown={controls.shown}
            isUnchecked={controls.isUnchecked}
            tail={run?.end?.missed ?? ""}
            note={noteOf(trace, run)}
            onGoTo={controls.goTo}
          />
          <TreePanel steps={steps} controls={controls} />
          <Figures run={run} metrics={session.metrics} />
        </div>
        {trace?.request.compare && (
          <Race key={trace.request.id} plain={runOf(trace, "ar")} guessing={runOf(trace, "heads")} />
        )}
      </main>
      <footer>
        <TraceButtons trace={trace} isRunning={isRunning} onOpen={session.open} onProblem={session.say} />
        <a href="./LICENSES.txt">Licences of the libraries</a>
      </footer>
      <p className="unseen" role="status" id="status">
        {statusOf(trace, isRunning, controls.isPlaying || !step ? null : sentence(step))}
      </p>
    </>
  );
}

function LinkState({ link, ready }: { link: Link; ready: Ready | null }) {
  const words: Record<Link, string> = {
    connecting: "connecting …",
    ready: ready ? `${ready.model}, drafter ${ready.drafter}` : "connected",
    waiting: "no connection, trying again …",
    refused: "the server asks for a key",
    offline: "no server: open a saved trace",
  };
  return (
    <p className={`link ${link}`} id="link">
      <span className="dot" aria-hidden="true" />
      {words[link]}
    </p>
  );
}

function Runs({ trace, at, onPick }: { trace: Trace; at: number; onPick: (at: number) => void }) {
  return (
    <div className="buttons runs" role="group" aria-label="Which run is shown">
      {trace.runs.map((run, index) => (
        <button key={run.start.run} type="button" aria-pressed={index === at} onClick={() => onPick(index)}>
          {run.start.run === "ar" ? "Plain decoding" : "With guesses"}
        </button>
      ))}
    </div>
  );
}

const REASONS: Record<string, string> = {
  stop: "The answer is complete.",
  length: "Cut: the number of tokens asked for is reached.",
  cancelled: "Cancelled.",
};

function noteOf(trace: Trace | null, run: Run | null): string | null {
  if (!trace) return null;
  if (run?.end) return REASONS[run.end.finish_reason] ?? run.end.finish_reason;
  return run?.failure ?? trace.failure;
}

/** For screen readers: the turns of events, not every step. */
function statusOf(trace: Trace | null, isRunning: boolean, shown: string | null): string {
  if (isRunning) return "Decoding.";
  if (!trace) return "Nothing decoded yet.";
  return [noteOf(trace, trace.runs.at(-1) ?? null), shown].filter(Boolean).join(" ");
}
