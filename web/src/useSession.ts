/** What the page knows: the link to the server, the server's figures, and the trace that is shown. */

import { useEffect, useRef, useState } from "react";
import { Connection, socketUrl, type Link } from "./protocol/connection";
import type { Generate, Metrics, Ready, ServerMessage } from "./protocol/messages";
import { extend, fail, isOver, newTrace, type Trace } from "./trace/trace";

const KEY = "euryale-key"; // of this tab only: it is gone when the tab is closed
const DRAW_MS = 30; // messages that come within this time are drawn together

export interface Session {
  link: Link;
  ready: Ready | null;
  metrics: Metrics | null;
  trace: Trace | null;
  /** The trace still grows. */
  isRunning: boolean;
  notice: string | null;
  generate: (request: Omit<Generate, "type" | "id">) => void;
  cancel: () => void;
  open: (trace: Trace) => void;
  useKey: (key: string) => void;
  say: (notice: string | null) => void;
}

export function useSession(): Session {
  const [link, setLink] = useState<Link>("connecting");
  const [ready, setReady] = useState<Ready | null>(null);
  const [metrics, setMetrics] = useState<Metrics | null>(null);
  const [trace, setTrace] = useState<Trace | null>(null);
  const [notice, say] = useState<string | null>(null);
  const connection = useRef<Connection>(null);

  useEffect(() => {
    let waiting: ServerMessage[] = [];
    let timer: ReturnType<typeof setTimeout> | undefined;
    const draw = () => {
      timer = undefined;
      const messages = waiting;
      waiting = [];
      setTrace((known) => known && messages.reduce(extend, known));
    };
    const made = new Connection(socketUrl(location.href), {
      onLink: (next) => {
        setLink(next);
        if (next === "ready") say(null);
        if (next !== "waiting" && next !== "refused") return;
        setMetrics(null);
        draw();
        setTrace((known) =>
          known && !isOver(known) ? fail(known, "The connection was lost before the answer was complete.") : known,
        );
      },
      onMessage: (message) => {
        if (message.type === "ready") return setReady(message);
        if (message.type === "metrics") return setMetrics(message);
        if (message.type === "error") say(message.message);
        waiting.push(message);
        timer ??= setTimeout(draw, DRAW_MS);
      },
      onNonsense: (why) => say(`The server sent something that this page does not understand: ${why}.`),
    });
    connection.current = made;
    made.open(sessionStorage.getItem(KEY));
    return () => {
      clearTimeout(timer);
      made.close();
    };
  }, []);

  return {
    link,
    ready,
    metrics,
    trace,
    isRunning: trace !== null && !isOver(trace),
    notice,
    generate: (asked) => {
      const request: Generate = { type: "generate", id: newId(), ...asked };
      if (!connection.current?.send(request)) return say("The server is not connected.");
      say(null);
      setTrace(newTrace(request));
    },
    cancel: () => {
      if (trace) connection.current?.send({ type: "cancel", id: trace.request.id });
    },
    open: (opened) => {
      say(null);
      setTrace(opened);
    },
    useKey: (key) => {
      sessionStorage.setItem(KEY, key);
      say(null);
      connection.current?.open(key);
    },
    say,
  };
}

/** Of this tab's own: crypto.randomUUID is missing where a page came over plain http from another machine. */
const newId = (): string => `g${Date.now().toString(36)}-${Math.random().toString(36).slice(2, 10)}`;
