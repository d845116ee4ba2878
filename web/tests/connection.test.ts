import { afterEach, beforeEach, expect, test, vi } from "vitest";
import { Connection, socketUrl } from "../src/protocol/connection";

class Socket {
  static readonly OPEN = 1;
  static made: Socket[] = [];
  readyState = 0;
  sent: string[] = [];
  onopen = () => {};
  onmessage = (_: { data: unknown }) => {};
  onclose = (_: { code: number }) => {};
  constructor(readonly url: string) {
    Socket.made.push(this);
  }
  send = (text: string) => this.sent.push(text);
  close = () => {};
  arrive() {
    this.readyState = 1;
    this.onopen();
  }
}

const READY = JSON.stringify({
  type: "ready",
  v: 1,
  model: "m",
  drafter: "heads",
  max_model_len: 9,
  chat: false,
  version: "1",
});
const links: string[] = [];
const nonsense: string[] = [];
const listener = {
  onLink: (link: string) => links.push(link),
  onMessage: () => {},
  onNonsense: (why: string) => nonsense.push(why),
};
const last = () => Socket.made.at(-1)!;

beforeEach(() => {
  vi.useFakeTimers();
  vi.stubGlobal("WebSocket", Socket);
  Socket.made = [];
  links.length = nonsense.length = 0;
});
afterEach(() => {
  vi.unstubAllGlobals();
  vi.useRealTimers();
});

test("says hello with the key, never in the address", () => {
  new Connection("ws://h/ws", listener).open("secret");
  last().arrive();
  expect(JSON.parse(last().sent[0]!)).toEqual({ type: "hello", v: 1, key: "secret" });
  expect(last().url).toBe("ws://h/ws");
});

test("comes back after a break, with longer waits, which a good connection resets", () => {
  new Connection("ws://h/ws", listener).open(null);
  for (const wait of [500, 1000, 2000, 4000, 8000, 8000]) {
    const made = Socket.made.length;
    last().onclose({ code: 1006 });
    vi.advanceTimersByTime(wait - 1);
    expect(Socket.made).toHaveLength(made);
    vi.advanceTimersByTime(1);
    expect(Socket.made).toHaveLength(made + 1);
  }
  last().arrive();
  last().onmessage({ data: READY });
  last().onclose({ code: 1012 });
  vi.advanceTimersByTime(500);
  expect(Socket.made).toHaveLength(8);
});

test("a refused key is not tried again", () => {
  new Connection("ws://h/ws", listener).open("wrong");
  last().onclose({ code: 1008 });
  vi.advanceTimersByTime(60_000);
  expect(Socket.made).toHaveLength(1);
  expect(links.at(-1)).toBe("refused");
});

test("what cannot be understood is told, and the next message is read", () => {
  new Connection("ws://h/ws", listener).open(null);
  last().onmessage({ data: "{" });
  expect(nonsense).toEqual(["a frame must be JSON"]);
  last().onmessage({ data: READY });
  expect(links.at(-1)).toBe("ready");
});

test("a closed connection's late messages are nobody's", () => {
  const connection = new Connection("ws://h/ws", listener);
  connection.open(null);
  const old = last();
  connection.close();
  old.onmessage({ data: READY });
  old.onclose({ code: 1006 });
  vi.advanceTimersByTime(10_000);
  expect(Socket.made).toHaveLength(1);
  expect(links).toEqual(["connecting"]);
});

test.each([
  ["http://127.0.0.1:8000/", "ws://127.0.0.1:8000/ws"],
  ["https://h/deep/page?x=1#y", "wss://h/deep/ws"],
  ["file:///tmp/index.html", null],
])("the socket of %s is %s", (page, socket) => {
  expect(socketUrl(page)).toBe(socket);
});
