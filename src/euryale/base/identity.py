"""Identity of a base: heads and adapters are used only with the base that they were trained for."""

from collections.abc import Mapping
from typing import Any

from euryale.errors import UserError


def check_same_base(what: str, trained: Mapping[str, Any], given: Mapping[str, Any]) -> None:
    """Sizes and architecture must agree; so must the fingerprint of the weights, where the two can be compared.

    `what` begins the message: "The heads in DIR". `trained` and `given` are Base.identity().
    """
    keys = ["architecture", "vocab_size", "hidden_size"]
    # A hub commit and a digest of local files name weights differently and cannot be compared.
    if str(trained.get("fingerprint")).startswith("hub:") == str(given["fingerprint"]).startswith("hub:"):
        keys.append("fingerprint")
    different = [key for key in keys if trained.get(key) != given[key]]
    if different:
        raise UserError(
            f"{what} were trained for {_name(trained)}, but the base given is {_name(given)}; "
            f"they differ in {', '.join(different)}. Give the base they were trained for, or train heads for this one."
        )


def _name(identity: Mapping[str, Any]) -> str:
    facts = [f"{key} {identity.get(key)}" for key in ("architecture", "vocab_size", "hidden_size", "fingerprint")]
    return f"{identity.get('path')} ({', '.join(facts)})"
