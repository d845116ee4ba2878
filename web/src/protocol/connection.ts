/** The socket: says hello, reads messages, and comes back by itself after a break. */

import { BadMessage } from "./checks";
import type { ClientMessage, ServerMessage } from "./messages";
import { readFrame } from "./read";

export type Link = "connecting" | "ready" | "waiting" | "refused" | "offline";

export interface Listener {
  onLink: (link: Link) => void;
  onMessage: (message: ServerMessage) => void;
  /** Something came that this page does not understand. */
  onNonsense: (why: string) => void;
}

const WAITS_MS = [500, 1000, 2000, 4000, 8000];
const REFUSED = 1008;

export class Connection {
  private socket: WebSocket | null = null;
  private failures = 0;
  private timer: ReturnType<typeof setTimeout> | undefined;
  private key: string | null = null;

  constructor(
    private readonly url: string | null,
    private readonly listener: Listener,
  ) {}

  /** Connects, at once and with this key; url null (a page opened from a file) stays offline. */
  open(key: string | null): void {
    this.close();
    this.key = key;
    if (this.url === null) return this.listener.onLink("offline");
    this.connect(this.url);
  }

  /** Sends; false when nothing is connected. */
  send(message: ClientMessage): boolean {
    if (this.socket?.readyState !== WebSocket.OPEN) return false;
    this.socket.send(JSON.stringify(message));
    return true;
  }

  close(): void {
    clearTimeout(this.timer);
    const socket = this.socket;
    this.socket = null;
    socket?.close(1000);
  }

  private connect(url: string): void {
    this.listener.onLink("connecting");
    const socket = new WebSocket(url);
    this.socket = socket;
    socket.onopen = () => this.send({ type: "hello", v: 1, key: this.key });
    socket.onmessage = ({ data }) => this.socket === socket && this.receive(data);
    socket.onclose = ({ code }) => this.socket === socket && this.lose(url, code);
  }

  private receive(data: unknown): void {
    try {
      const message = readFrame(data);
      if (!message) return;
      if (message.type === "ready") {
        this.failures = 0;
        this.listener.onLink("ready");
      }
      this.listener.onMessage(message);
    } catch (error) {
      if (!(error instanceof BadMessage)) throw error;
      this.listener.onNonsense(error.message);
    }
  }

  private lose(url: string, code: number): void {
    this.socket = null;
    if (code === REFUSED) return this.listener.onLink("refused");
    const wait = WAITS_MS[Math.min(this.failures, WAITS_MS.length - 1)];
    this.failures += 1;
    this.listener.onLink("waiting");
    this.timer = setTimeout(() => this.connect(url), wait);
  }
}

/** `ws` beside the page; null for a page that no server sent. */
export function socketUrl(page: string): string | null {
  const url = new URL("ws", page);
  if (url.protocol !== "http:" && url.protocol !== "https:") return null;
  url.protocol = url.protocol === "http:" ? "ws:" : "wss:";
  url.search = url.hash = "";
  return url.href;
}
