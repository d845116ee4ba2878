"""Grammars as llguidance reads them: what can be seen of a JSON schema or a regular expression without a tokenizer."""

from euryale.decoding.sampling import Sampling
from euryale.errors import UserError

# Without a bound, a weak model goes on with spaces for ever: two between values, or a line and its indentation.
_WHITESPACE = r"[ \t]{1,2}|\r?\n[ \t]{0,32}"
_MOST_SHOWN = 300  # characters of llguidance's reasons


def check_syntax(sampling: Sampling) -> None:
    """Raises UserError for what can be seen without a tokenizer, before a base is loaded: a schema or an expression
    that llguidance cannot read, the package is not installed."""
    name, text = asked(sampling)
    if not text:
        return
    grammar = read_grammar(name, text)
    from llguidance import LLMatcher  # optional: the extra `grammar`; read_grammar says what is missing

    if reason := LLMatcher.validate_grammar(grammar):
        raise refusal(name, reason)


def asked(sampling: Sampling) -> tuple[str, str]:
    """Which setting names the grammar, and its text; empty where none does."""
    name = "regex" if sampling.json_schema is None else "json_schema"
    return name, str(sampling.json_schema or sampling.regex or "")


def read_grammar(name: str, text: str) -> str:
    """The text as a grammar of llguidance. Raises UserError."""
    try:
        from llguidance import LLMatcher  # optional: the extra `grammar`
    except ModuleNotFoundError as error:
        raise UserError(
            "json_schema and regex need the package llguidance, which is not installed. Install it: "
            "pip install -c constraints.txt -e '.[grammar]', or leave them out."
        ) from error
    try:
        if name == "regex":
            return LLMatcher.grammar_from_regex(text)
        return LLMatcher.grammar_from_json_schema(text, defaults={"whitespace_pattern": _WHITESPACE})
    except ValueError as error:  # JSON that Python reads and it does not: half a surrogate pair, deep nesting
        raise refusal(name, str(error)) from error


def refusal(name: str, reason: str) -> UserError:
    return UserError(f"{name} must be one that llguidance can follow; got: {cut(reason)}.")


def cut(text: str) -> str:
    """A reason, which may repeat what the user wrote, in one line of ASCII."""
    line = " ".join(text.split()).encode("ascii", "backslashreplace").decode()
    return line if len(line) <= _MOST_SHOWN else f"{line[:_MOST_SHOWN]}..."
