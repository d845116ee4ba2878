/** How fast: of the run that is shown, and what the server is doing. */

import { scaleLinear } from "d3-scale";
import type { Metrics } from "../protocol/messages";
import { acceptanceByDepth, tau, timeParts, tokensPerSecond } from "../trace/stats";
import type { Run } from "../trace/trace";

interface Props {
  run: Run | null;
  metrics: Metrics | null;
}

export function Figures({ run, metrics }: Props) {
  const steps = run?.steps ?? [];
  const dropped = steps.reduce((sum, step) => sum + step.dropped, 0);
  return (
    <section className="panel figures" aria-labelledby="figures-title">
      <h2 id="figures-title">Figures</h2>
      <dl className="tiles">
        <Tile
          name="tokens a second"
          value={tokensPerSecond(steps)}
          digits={1}
          title="From the end of the first step on: reading the prompt does not count"
        />
        <Tile
          name="tokens a pass, τ"
          value={tau(steps)}
          digits={2}
          title="Mean tokens that one pass of the model brings; plain decoding has 1"
        />
      </dl>
      <Acceptance run={run} />
      <Times run={run} />
      <div>
        <h3>Server</h3>
        <dl className="facts">
          <Fact name="decoding" value={metrics && `${metrics.running} of ${metrics.max_running}`} />
          <Fact name="waiting" value={metrics && String(metrics.waiting)} />
          <Fact name="tokens a second, all" value={metrics && metrics.tokens_per_s.toFixed(1)} />
          <Fact name="tokens a pass, all" value={metrics?.tau?.toFixed(2) ?? null} />
          {run && <Fact name="waited before it began" value={`${run.start.queue_ms.toFixed(0)} ms`} />}
          {dropped > 0 && <Fact name="steps not shown" value={String(dropped)} />}
        </dl>
      </div>
    </section>
  );
}

function Acceptance({ run }: { run: Run | null }) {
  const depths = acceptanceByDepth(run?.steps ?? []);
  if (!run?.steps.length) return null;
  const wide = scaleLinear([0, 1], [0, 100]);
  return (
    <div>
      <h3>Right guesses by depth</h3>
      {depths.length === 0 && <p className="none">Plain decoding makes no guesses.</p>}
      <ol className="depths">
        {depths.map(({ depth, drafted, accepted }) => (
          <li key={depth} title={`${accepted} of ${drafted} steps that guessed token +${depth}`}>
            <span>+{depth}</span>
            <svg viewBox="0 0 100 10" preserveAspectRatio="none" aria-hidden="true">
              <rect className="track" width={100} height={10} />
              <rect className="share" width={wide(accepted / drafted)} height={10} />
            </svg>
            <span className="number">{Math.round((100 * accepted) / drafted)}%</span>
          </li>
        ))}
      </ol>
    </div>
  );
}

function Times({ run }: { run: Run | null }) {
  const parts = timeParts(run?.steps ?? []);
  if (parts.length === 0) return null;
  const total = parts.reduce((sum, part) => sum + part.ms, 0);
  const wide = scaleLinear([0, total || 1], [0, 100]);
  const starts = parts.map((_, at) => parts.slice(0, at).reduce((sum, part) => sum + part.ms, 0));
  return (
    <div>
      <h3>Time of a step{total > 0 && `: ${total.toFixed(1)} ms`}</h3>
      <svg className="parts" viewBox="0 0 100 10" preserveAspectRatio="none" aria-hidden="true">
        {parts.map((part, at) => (
          <rect key={part.name} className={`part part${at}`} x={wide(starts[at]!)} width={wide(part.ms)} height={10} />
        ))}
      </svg>
      <ul className="legend">
        {parts.map((part, at) => (
          <li key={part.name}>
            <svg viewBox="0 0 10 10" aria-hidden="true">
              <rect className={`part part${at}`} width={10} height={10} rx={2} />
            </svg>
            {part.name} <span className="number">{part.ms.toFixed(1)} ms</span>
          </li>
        ))}
      </ul>
    </div>
  );
}

function Tile({ name, value, digits, title }: { name: string; value: number | null; digits: number; title: string }) {
  return (
    <div title={title}>
      <dt>{name}</dt>
      <dd>{value === null ? "–" : value.toFixed(digits)}</dd>
    </div>
  );
}

function Fact({ name, value }: { name: string; value: string | null }) {
  return (
    <div>
      <dt>{name}</dt>
      <dd>{value ?? "–"}</dd>
    </div>
  );
}
