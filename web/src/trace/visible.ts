/** Tokens as a person can see them: spaces, ends of lines, and characters that hide or turn text are spelled out. */

const NAMED: Record<string, string> = { " ": "·", "\n": "↵", "\t": "⇥" };
const HIDDEN_IN_TOKENS = /[\p{Cc}\p{Cf}\p{Co}\p{Cs}\p{Cn}\p{Zl}\p{Zp} \u00a0\u3164\ufe00-\ufe0f]/gu;
// Joiners stay in running text: emoji and several scripts are written with them.
const HIDDEN_IN_TEXT = /[\p{Cc}\u00ad\u061c\u200b\u200e\u200f\u2028-\u202e\u2060-\u206f\ufeff\u{e0000}-\u{e007f}]/gu;

/** One token, every character of it visible. */
export function visible(token: string): string {
  const shown = token.replace(HIDDEN_IN_TOKENS, spell);
  return /^\p{M}/u.test(shown) ? "◌" + shown : shown;
}

/** Running text: ends of lines and tabs keep their meaning, everything else that cannot be seen is spelled out. */
export function visibleText(text: string): string {
  return text.replace(HIDDEN_IN_TEXT, (it) => (it === "\n" || it === "\t" ? it : spell(it)));
}

/** Cuts to about `most` columns of a fixed-width font, with a sign that something is missing. */
export function shorten(text: string, most: number): string {
  let used = 0;
  let kept = "";
  for (const letter of text) {
    used += /[\u1100-\u115f\u2e80-\ua4cf\uac00-\ud7a3\uf900-\ufaff\ufe30-\ufe6f\uff00-\uff60\u{1f300}-\u{1faff}]/u.test(
      letter,
    )
      ? 2
      : 1;
    if (used > most) return kept.slice(0, lastCut(kept)) + "…";
    kept += letter;
  }
  return text;
}

const lastCut = (kept: string): number => kept.length - ([...kept].at(-1)?.length ?? 0);

function spell(it: string): string {
  const code = it.codePointAt(0)!;
  if (NAMED[it]) return NAMED[it];
  return `‹U+${code.toString(16).toUpperCase().padStart(4, "0")}›`;
}
