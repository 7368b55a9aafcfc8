"""``${NAME}`` and ``${NAME:-default}`` in a job file, and the secrets that must never enter one.

A secret belongs in the environment of the process that uses it: a job file, its resolved copy in the
run directory, logs and trackers would all show it. No message here carries a secret's value.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from dataclasses import replace
from typing import Any

from orchestrator.errors import Problem
from orchestrator.spec.tree import Items, KeyPath, Place, Table, key_text

VARIABLE = re.compile(r"\$\$\{|\$\{([^}]*)(\}?)")
REFERENCE = re.compile(r"([A-Za-z_][A-Za-z0-9_]*)(?::-(.*))?", re.DOTALL)
SECRET_NAME = re.compile(
    r"(?:^|_)(?:API_?KEY|KEY|TOKEN|SECRET|PASSWORD|PASSWD|CREDENTIALS?|AUTH)(?:_|$)", re.IGNORECASE
)
# Not ``token`` or ``key`` at the end of any word: ``pad_token`` and ``eos_token`` are model settings.
SECRET_KEY = re.compile(
    r"(?:.*[_-])?(?:api|access|auth|secret|private|hf|hub|bearer|wandb|client)[_-]?(?:key|token|secret)s?"
    r"|token|secrets?|auth|authorization|(?:.*[_-])?(?:passwords?|passwd|credentials?)",
    re.IGNORECASE,
)
# Vocabularies are smaller: ``token: 50256`` is an entry of one.
MAX_TOKEN_ID = 999_999
SECRET_VALUE = re.compile(
    r"\bhf_[A-Za-z0-9]{16,}|\bsk-[A-Za-z0-9_-]{16,}|\bAKIA[0-9A-Z]{16}\b|\bgh[pousr]_[A-Za-z0-9]{20,}"
    r"|\beyJ[\w-]{8,}\.eyJ[\w-]{8,}\.|\bBearer [\w.~+/-]{16,}"
    r"|\bglpat-[\w-]{16,}|\bAIza[\w-]{30,}|\bnpm_[A-Za-z0-9]{30,}|\bSG\.[\w-]{16,}\.[\w-]{16,}"
    r"|\bwandb_v1_\w{16,}|\bgithub_pat_\w{20,}|\bxox[abprs]-[\w-]{10,}|-----BEGIN [A-Z ]*PRIVATE KEY"
    # One slash: a path that was made absolute has lost the other.
    r"|:/{1,2}[^/\s:@]+:[^/\s@]+@"
)
# The older form of W&B's keys; elsewhere 40 hexadecimal digits are a commit.
WANDB_KEY = re.compile(r"[0-9a-f]{40}")


def interpolate(text: str, environment: Mapping[str, str]) -> str:
    """``text`` with its variables replaced; ``$${`` stands for ``${``.

    Raises:
        ValueError: A variable is unset and has no default, is malformed, or names a secret.
    """
    if "${" not in text:
        return text
    return VARIABLE.sub(lambda found: _replacement(found, environment), text)


def _replacement(found: re.Match[str], environment: Mapping[str, str]) -> str:
    inside, end = found.groups()
    if inside is None:
        return "${"
    reference = REFERENCE.fullmatch(inside) if end else None
    if reference is None:
        raise ValueError(
            "expected '${NAME}' or '${NAME:-default}' after a '${'; write '$${' for a plain '${'"
        )
    name, default = reference.groups()
    if SECRET_NAME.search(name):
        raise ValueError(
            f"environment variable '{name}' looks like a secret, and a job file is copied into the run"
            f" directory. Take it out of the file: what needs '{name}' reads it from the environment"
        )
    if default and "${" in default:
        raise ValueError(
            f"the default of '${{{name}:-...}}' holds another '${{', and variables do not nest."
            " Give plain text as the default"
        )
    value = environment.get(name)
    if default is not None:
        # As in a shell: ``:-`` stands for a variable that is empty, too.
        value = value or default
    if value is None:
        raise ValueError(
            f"environment variable '{name}' is not set. Set it, or give a default: '${{{name}:-...}}'"
        )
    return value


def without_secrets(problem: Problem) -> Problem:
    """``problem`` without what looks like a secret, which may be a key and stand in any message's path."""
    key, message = (SECRET_VALUE.sub("***", text) for text in (problem.key, problem.message))
    return replace(problem, key=key, message=message)


def secrets_in(node: Any, path: KeyPath, place: Place) -> Iterator[tuple[KeyPath, Problem]]:
    """Values under ``node`` that look like secrets, each with its path."""
    if isinstance(node, Table):
        for key, value in node.items():
            if SECRET_VALUE.search(key):
                yield path, _secret_problem(node.places[key], path)
            yield from secrets_in(value, (*path, key), node.places[key])
    elif isinstance(node, Items):
        for index, item in enumerate(node):
            yield from secrets_in(item, (*path, index), node.places[index])
    elif _is_secret(node, path):
        yield path, _secret_problem(place, path)


def _secret_problem(place: Place, path: KeyPath) -> Problem:
    message = (
        "looks like a secret's value, and a job file is copied into the run directory."
        " Remove it here (and revoke it if the file was shared); export it as an environment"
        " variable instead, such as HF_TOKEN or WANDB_API_KEY"
    )
    return Problem(place.file, place.line, key_text(path), message)


def _is_secret(value: Any, path: KeyPath) -> bool:
    if isinstance(value, str) and SECRET_VALUE.search(value):
        return True
    if path[:2] == ("tracking", "wandb") and isinstance(value, str) and WANDB_KEY.fullmatch(value):
        return True
    if isinstance(value, bool) or not isinstance(value, str | int | float) or value == "":
        return False
    # An item of a list is named by the list.
    names = [part for part in path if isinstance(part, str)]
    if not names or _is_users_own(names) or not SECRET_KEY.fullmatch(names[-1]):
        return False
    is_token_id = names[-1].lower() == "token" and not isinstance(value, str) and value <= MAX_TOKEN_ID
    return not is_token_id


def _is_users_own(names: list[str]) -> bool:
    """Whether the last of ``names`` is a column or a dataset, which may be called anything."""
    is_column = names[0] == "datasets" and names[2:-1] == ["filter"]
    return is_column or names[1:-1] == ["data", "mixture"]
