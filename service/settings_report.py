"""What is said about settings: which are not the defaults, and which variables of the environment are none.

Shows no secret: of a store's URL neither the name, the password nor the parameters. Does not know what the
settings do.
"""

import dataclasses
import difflib
import re
from collections.abc import Collection, Mapping
from typing import Any

from service.config import ENV_PREFIX, Config

# Variables with the server's prefix that others read: the command line client, and the tests.
_OTHERS = ("STREAMCELL_TARGET", "STREAMCELL_TOKEN", "STREAMCELL_E2E")
# What Kubernetes and old links of containers set for a service named streamcell or streamcell-….
_LINKS = re.compile(r".*_SERVICE_(HOST|PORT)(_.+)?|.*_PORT(_\d+_[A-Z]+(_(PROTO|PORT|ADDR))?)?")
_SECRETS = re.compile(r"(?<=//).*@|\?.*", re.DOTALL)  # of a URL: the name and password, and the parameters


def not_default(settings: Config) -> dict[str, str]:
    """Returns the settings that are not their defaults, as texts."""
    found = {}
    for field in dataclasses.fields(Config):
        value = getattr(settings, field.name)
        if value != field.default and field.name != "front":  # `auto` has been replaced
            found[field.name] = _text(value)
    if "store" in found:
        found["store"] = _SECRETS.sub(
            lambda match: "***@" if match[0].endswith("@") else "?***", found["store"]
        )
    return found


def _text(value: Any) -> str:
    """Returns a value in the form of its flag."""
    if isinstance(value, bool):
        return str(value).lower()
    return f"{value:g}" if isinstance(value, float) else str(value)


def unknown_variables(environment: Collection[str]) -> Mapping[str, str]:
    """Returns the variables with the server's prefix that are no settings, and the nearest setting of each.

    The nearest is "" where none is near.
    """
    known = [field.name.upper() for field in dataclasses.fields(Config)]
    found = {}
    for variable in sorted(environment):
        name = variable.removeprefix(ENV_PREFIX)
        if (
            name != variable
            and name not in known
            and variable not in _OTHERS
            and not _LINKS.fullmatch(variable)
        ):
            nearest = difflib.get_close_matches(name, known, 1)
            found[variable] = ENV_PREFIX + nearest[0] if nearest else ""
    return found
