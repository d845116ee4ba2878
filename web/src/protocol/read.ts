/** Reads what a server or a saved trace says into typed messages, or says what is wrong with it. */

import { BadMessage, flagAt, intAt, listAt, numberAt, objectAt, oneOf, textAt, type Fields } from "./checks";
import type { Bonus, Generate, RunName, ServerMessage, Step, TreeNode } from "./messages";

/** The message, or null for a type that this version does not know. Throws BadMessage. */
export function readMessage(value: unknown): ServerMessage | null {
  const it = objectAt(value, "a message");
  const type = textAt(it.type, "type");
  return Object.hasOwn(READERS, type) ? READERS[type]!(it) : null;
}

/** A frame of the socket. Throws BadMessage. */
export function readFrame(data: unknown): ServerMessage | null {
  try {
    return readMessage(JSON.parse(textAt(data, "a frame")));
  } catch (error) {
    if (error instanceof SyntaxError) throw new BadMessage("a frame must be JSON");
    throw error;
  }
}

/** A request, as it stands in a saved trace. Throws BadMessage. */
export function readGenerate(value: unknown): Generate {
  const it = objectAt(value, "request");
  const sampling = objectAt(it.sampling, "request.sampling");
  const request: Generate = {
    type: "generate",
    id: textAt(it.id, "request.id"),
    sampling: {
      max_tokens: intAt(sampling.max_tokens, "request.sampling.max_tokens"),
      temperature: numberAt(sampling.temperature, "request.sampling.temperature"),
      seed: sampling.seed == null ? null : intAt(sampling.seed, "request.sampling.seed"),
    },
    compare: flagAt(it.compare, "request.compare"),
  };
  if (it.prompt !== undefined) return { ...request, prompt: textAt(it.prompt, "request.prompt") };
  const messages = listAt(it.messages, "request.messages").map((value, at) => {
    const message = objectAt(value, `request.messages[${at}]`);
    return {
      role: textAt(message.role, `request.messages[${at}].role`),
      content: textAt(message.content, `request.messages[${at}].content`),
    };
  });
  return { ...request, messages };
}

const READERS: Record<string, (it: Fields) => ServerMessage> = {
  ready: (it) => ({
    type: "ready",
    v: intAt(it.v, "ready.v"),
    model: textAt(it.model, "ready.model"),
    drafter: textAt(it.drafter, "ready.drafter"),
    max_model_len: intAt(it.max_model_len, "ready.max_model_len"),
    chat: flagAt(it.chat, "ready.chat"),
    lossless: it.lossless === undefined ? true : flagAt(it.lossless, "ready.lossless"),
    version: textAt(it.version, "ready.version"),
  }),
  start: (it) => ({
    type: "start",
    ...idAndRun(it, "start"),
    model: textAt(it.model, "start.model"),
    drafter: textAt(it.drafter, "start.drafter"),
    seed: intAt(it.seed, "start.seed"),
    prompt_tokens: intAt(it.prompt_tokens, "start.prompt_tokens"),
    queue_ms: numberAt(it.queue_ms, "start.queue_ms"),
  }),
  step: readStep,
  metrics: (it) => ({
    type: "metrics",
    running: intAt(it.running, "metrics.running"),
    waiting: intAt(it.waiting, "metrics.waiting"),
    max_running: intAt(it.max_running, "metrics.max_running"),
    tokens_per_s: numberAt(it.tokens_per_s, "metrics.tokens_per_s"),
    tau: it.tau === null ? null : numberAt(it.tau, "metrics.tau"),
  }),
  end: (it) => ({
    type: "end",
    ...idAndRun(it, "end"),
    finish_reason: textAt(it.finish_reason, "end.finish_reason"),
    text: textAt(it.text, "end.text"),
    ids: listAt(it.ids, "end.ids").map((id, at) => intAt(id, `end.ids[${at}]`)),
    t_ms: numberAt(it.t_ms, "end.t_ms"),
    steps: intAt(it.steps, "end.steps"),
    dropped: intAt(it.dropped, "end.dropped"),
    missed: textAt(it.missed, "end.missed"),
  }),
  error: (it) => {
    const error = objectAt(it.error, "error.error");
    return {
      type: "error",
      id: it.id == null ? null : textAt(it.id, "error.id"),
      message: textAt(error.message, "error.error.message"),
      code: error.code == null ? null : textAt(error.code, "error.error.code"),
    };
  },
};

function readStep(it: Fields): Step {
  const nodes = listAt(it.nodes, "step.nodes").map(readNode);
  if (nodes.length === 0) throw new BadMessage("step.nodes must hold the root; got an empty list");
  nodes.forEach((node, at) => {
    const depth = at === 0 ? 0 : nodes[node.parent]!.depth + 1;
    if (node.depth !== depth) throw new BadMessage(`step.nodes[${at}].depth must be ${depth}; got ${node.depth}`);
  });
  const parts = Object.entries(objectAt(it.parts_ms, "step.parts_ms"));
  return {
    type: "step",
    ...idAndRun(it, "step"),
    i: intAt(it.i, "step.i"),
    t_ms: numberAt(it.t_ms, "step.t_ms"),
    parts_ms: Object.fromEntries(parts.map(([name, ms]) => [name, numberAt(ms, `step.parts_ms.${name}`)])),
    nodes,
    bonus: it.bonus === null ? null : readBonus(it.bonus, nodes.length),
    text: textAt(it.text, "step.text"),
    dropped: intAt(it.dropped, "step.dropped"),
    missed: textAt(it.missed, "step.missed"),
  };
}

function readNode(value: unknown, at: number): TreeNode {
  const where = `step.nodes[${at}]`;
  const it = objectAt(value, where);
  return {
    token: intAt(it.token, `${where}.token`),
    text: textAt(it.text, `${where}.text`),
    parent: at === 0 ? intAt(it.parent, `${where}.parent`, -1, -1) : intAt(it.parent, `${where}.parent`, 0, at - 1),
    depth: intAt(it.depth, `${where}.depth`),
    rank: intAt(it.rank, `${where}.rank`),
    p: numberAt(it.p, `${where}.p`, 0, 1),
    state: oneOf(it.state, `${where}.state`, at === 0 ? ["root"] : ["accepted", "rejected"]),
  };
}

function readBonus(value: unknown, numNodes: number): Bonus {
  const it = objectAt(value, "step.bonus");
  return {
    token: intAt(it.token, "step.bonus.token"),
    text: textAt(it.text, "step.bonus.text"),
    parent: intAt(it.parent, "step.bonus.parent", 0, numNodes - 1),
    p: numberAt(it.p, "step.bonus.p", 0, 1),
  };
}

function idAndRun(it: Fields, where: string): { id: string; run: RunName } {
  return { id: textAt(it.id, `${where}.id`), run: oneOf(it.run, `${where}.run`, ["ar", "heads"]) };
}
