/** Checks of single values from outside: a socket, or a file that anyone may have written. */

export class BadMessage extends Error {}

export type Fields = Record<string, unknown>;

export function objectAt(value: unknown, where: string): Fields {
  if (typeof value !== "object" || value === null || Array.isArray(value)) throw bad(where, "an object", value);
  return value as Fields;
}

export function listAt(value: unknown, where: string): unknown[] {
  if (!Array.isArray(value)) throw bad(where, "a list", value);
  return value;
}

export function textAt(value: unknown, where: string): string {
  if (typeof value !== "string") throw bad(where, "a string", value);
  return value;
}

export function flagAt(value: unknown, where: string): boolean {
  if (typeof value !== "boolean") throw bad(where, "true or false", value);
  return value;
}

export function numberAt(value: unknown, where: string, least = 0, most = Number.MAX_SAFE_INTEGER): number {
  if (typeof value !== "number" || !(value >= least && value <= most))
    throw bad(where, `a number from ${least} to ${most}`, value);
  return value;
}

export function intAt(value: unknown, where: string, least = 0, most = Number.MAX_SAFE_INTEGER): number {
  if (!Number.isSafeInteger(value)) throw bad(where, "a whole number", value);
  return numberAt(value, where, least, most);
}

export function oneOf<T extends string>(value: unknown, where: string, allowed: readonly T[]): T {
  if (!allowed.includes(value as T)) throw bad(where, `one of ${allowed.join(", ")}`, value);
  return value as T;
}

function bad(where: string, wanted: string, value: unknown): BadMessage {
  const got = JSON.stringify(value) ?? typeof value;
  return new BadMessage(`${where} must be ${wanted}; got ${got.length > 40 ? got.slice(0, 40) + "…" : got}`);
}
