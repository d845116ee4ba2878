/** The messages of the WebSocket, version 1. PROTOCOL.md says what each field means. */

export type RunName = "ar" | "heads";

export interface TreeNode {
  token: number;
  text: string;
  parent: number;
  depth: number;
  rank: number;
  p: number;
  state: "root" | "accepted" | "rejected";
}

export interface Bonus {
  token: number;
  text: string;
  parent: number;
  p: number;
}

export interface Ready {
  type: "ready";
  v: number;
  model: string;
  drafter: string;
  max_model_len: number;
  chat: boolean;
  lossless: boolean;
  version: string;
}

export interface Start {
  type: "start";
  id: string;
  run: RunName;
  model: string;
  drafter: string;
  seed: number;
  prompt_tokens: number;
  queue_ms: number;
}

export interface Step {
  type: "step";
  id: string;
  run: RunName;
  i: number;
  t_ms: number;
  parts_ms: Record<string, number>;
  nodes: TreeNode[];
  bonus: Bonus | null;
  text: string;
  dropped: number;
  missed: string;
}

export interface Metrics {
  type: "metrics";
  running: number;
  waiting: number;
  max_running: number;
  tokens_per_s: number;
  tau: number | null;
}

export interface End {
  type: "end";
  id: string;
  run: RunName;
  finish_reason: string;
  text: string;
  ids: number[];
  t_ms: number;
  steps: number;
  dropped: number;
  missed: string;
}

export interface ServerError {
  type: "error";
  id: string | null;
  message: string;
  code: string | null;
}

export type ServerMessage = Ready | Start | Step | Metrics | End | ServerError;

export interface Sampling {
  max_tokens: number;
  temperature: number;
  seed: number | null;
}

export interface Generate {
  type: "generate";
  id: string;
  prompt?: string;
  messages?: { role: string; content: string }[];
  sampling: Sampling;
  compare: boolean;
}

export type ClientMessage = { type: "hello"; v: 1; key: string | null } | Generate | { type: "cancel"; id: string };
