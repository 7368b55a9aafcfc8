"""The jobs service of a Ray cluster over HTTP, with its token; ``status`` needs no Ray for it.

Source: Ray Jobs REST API and, for the nodes, its state API, docs.ray.io; token authentication, Ray 2.60.
"""

from __future__ import annotations

import http.client
import json
import math
import os
import urllib.error
import urllib.parse
import urllib.request
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from launchers.base import RefusedJobError
from orchestrator.errors import LaunchError

DEFAULT_ADDRESS = "http://127.0.0.1:8265"
TIMEOUT_SECONDS = 30
REDIRECTS = (301, 302, 303, 307, 308)
AUTHENTICATION = "/api/authentication_mode"
# As many as Ray's state service gives at once.
NODES = "/api/v0/nodes?detail=true&limit=10000"
CORRECT_ADDRESS = (
    "correct --address: it is that of the head's dashboard, such as http://HEAD:8265, and not HEAD:6379,"
    " where nodes join"
)
HOW_TO_GIVE_A_TOKEN = (
    "set RAY_AUTH_TOKEN_PATH to the file that holds the cluster's token (or RAY_AUTH_TOKEN to the token),"
    " and RAY_AUTH_MODE=token"
)


class _NoRedirects(urllib.request.HTTPRedirectHandler):
    """Leaves a redirect an error: its target, which may be anybody's, would be sent the token."""

    def redirect_request(self, *arguments: object) -> None:
        """Go nowhere."""


@dataclass(frozen=True)
class ClusterNode:
    """A node of a Ray cluster."""

    resources: Mapping[str, float]
    """``{"CPU": 8.0, "GPU": 2.0}``, whoever uses them."""
    started: float
    """When it started, in seconds since the epoch, by its own clock."""


class JobsService:
    """One cluster's jobs service."""

    def __init__(self, address: str | None) -> None:
        """``None`` stands for RAY_API_SERVER_ADDRESS, or this machine."""
        given = address or os.environ.get("RAY_API_SERVER_ADDRESS")
        if given and not _is_address(given):
            where = "launcher.options.address" if address else "RAY_API_SERVER_ADDRESS"
            raise RefusedJobError(
                f"{where} is {given!r}, expected the cluster's jobs service such as"
                " 'http://HEAD:8265': http or https, the host and the port of its dashboard"
            )
        self.address = (given or DEFAULT_ADDRESS).rstrip("/")

    def headers(self) -> dict[str, str]:
        """What proves to a cluster that asks for a token that this user may use it; it goes nowhere else.

        Raises:
            RefusedJobError: It asks, and there is none.
        """
        found = self._request("GET", AUTHENTICATION, {})
        # Another version of Ray knows no such thing.
        if self._checked({} if found is None else found, dict).get("authentication_mode") != "token":
            return {}
        token = find_token()
        if token is None:
            raise RefusedJobError(
                f"the Ray cluster at {self.address} asks for a token: {HOW_TO_GIVE_A_TOKEN}"
            )
        return {"Authorization": f"Bearer {token}"}

    def request(self, method: str, path: str) -> Any:
        """The answer to a request; ``None`` where there is no such thing.

        Raises:
            LaunchError: The cluster cannot be reached, or refused.
        """
        return self._request(method, path, self.headers())

    def job(self, job_id: str) -> dict[str, Any] | None:
        """What the cluster knows of a job."""
        return self._about(job_id, "", "status")

    def jobs(self) -> list[dict[str, Any]]:
        """What the cluster knows of all of its jobs; those that are over are among them."""
        found: list[Any] = self._checked(self.request("GET", "/api/jobs/"), list)
        return [self._checked(job, dict, "status") for job in found]

    def nodes(self) -> list[ClusterNode]:
        """The cluster's living nodes."""
        found = self.request("GET", NODES)
        try:
            return [
                ClusterNode(
                    {kind: _amount(node["resources_total"].get(kind, 0)) for kind in ("CPU", "GPU")},
                    _amount(node["start_time_ms"]) / 1000,
                )
                for node in found["data"]["result"]["result"]
                if node["state"] == "ALIVE"
            ]
        except (KeyError, TypeError, ValueError, AttributeError, OverflowError) as error:
            raise LaunchError(
                f"what answers at {self.address} does not tell of its nodes (it sent"
                f" {json.dumps(found)[:80]}), as Ray 2.60 does at {NODES}"
            ) from error

    def logs(self, job_id: str) -> str | None:
        """What a job has printed."""
        found = self._about(job_id, "/logs", "logs")
        return None if found is None else str(found["logs"])

    def stop(self, job_id: str) -> None:
        """End a job."""
        self.request("POST", f"{_path(job_id)}/stop")

    def _about(self, job_id: str, part: str, key: str) -> dict[str, Any] | None:
        found = self.request("GET", _path(job_id) + part)
        if found is None:
            # A server that has nothing at all is no jobs service.
            self.jobs()
            return None
        return dict(self._checked(found, dict, key))

    def _checked(self, found: Any, kind: type, key: str | None = None) -> Any:
        """An answer of a jobs service.

        Raises:
            LaunchError: It is none: not of this kind, or without the text that it must have.
        """
        is_found = isinstance(found, kind)
        if is_found and (key is None or isinstance(found.get(key), str)):
            return found
        raise LaunchError(
            f"what answers at {self.address} is no Ray jobs service (it sent {json.dumps(found)[:80]}):"
            f" {CORRECT_ADDRESS}"
        )

    def _request(self, method: str, path: str, headers: dict[str, str]) -> Any:
        request = urllib.request.Request(self.address + path, method=method, headers=headers)
        try:
            opener = urllib.request.build_opener(_NoRedirects)
            with opener.open(request, timeout=TIMEOUT_SECONDS) as answer:
                return json.loads(answer.read() or b"null")
        except urllib.error.HTTPError as error:
            if error.code == 404:
                return None
            raise self._refusal(error, has_token=bool(headers)) from error
        except (OSError, ValueError, RecursionError, http.client.HTTPException) as error:
            raise LaunchError(
                f"no Ray jobs service answers at {self.address} ({_reason(error)}): start the head with its"
                f" dashboard ('ray start --head --include-dashboard=true'), or {CORRECT_ADDRESS}"
            ) from error

    def _refusal(self, error: urllib.error.HTTPError, *, has_token: bool) -> LaunchError:
        try:
            text = printable(error.read().decode(errors="replace").strip()[:500])
        except (OSError, http.client.HTTPException):
            text = ""
        if error.code in REDIRECTS:
            target = str(error.headers.get("Location", ""))[:200]
            return LaunchError(
                f"what answers at {self.address} redirects ({error.code}) to {target!r}, where nothing is"
                " sent, since requests carry the cluster's token: if that is the cluster, give it with"
                f" --address; else {CORRECT_ADDRESS}"
            )
        if error.code in (401, 403) and not has_token:
            return RefusedJobError(
                f"what answers at {self.address} refused the request ({error.code}: {text or error.reason}),"
                " and no token was sent, since no Ray cluster there has asked for one: it may be a proxy that"
                f" keeps you out; ask who runs it, or {CORRECT_ADDRESS}"
            )
        if error.code in (401, 403):
            return RefusedJobError(
                f"the Ray cluster at {self.address} does not take the token that was sent ({text}):"
                f" {HOW_TO_GIVE_A_TOKEN}"
            )
        return LaunchError(
            f"the Ray cluster at {self.address} answered {error.code}: {text or error.reason}\nIf that is its"
            f" dashboard, the log of its head says more; else {CORRECT_ADDRESS}"
        )


def _is_address(text: str) -> bool:
    """Whether requests can be sent to it."""
    try:
        parts = urllib.parse.urlsplit(text)
        # Read for what it raises where the port is none.
        is_whole = bool(parts.hostname) and parts.port != 0
    except ValueError:
        return False
    is_plain = text.isprintable() and " " not in text and not parts.query and not parts.fragment
    return is_whole and is_plain and parts.scheme in ("http", "https") and "@" not in parts.netloc


def _reason(error: Exception) -> str:
    """Why there was no answer, in one line."""
    text = str(getattr(error, "reason", error)).strip() or type(error).__name__
    return text[:200] if text.isprintable() else repr(text)[:200]


def printable(text: str) -> str:
    """What a server sent, without what a terminal would obey; lines stay lines."""
    return "".join(sign if sign.isprintable() or sign == "\n" else "?" for sign in text)


def _amount(value: Any) -> float:
    """A number that somebody sent, and that counts something.

    Raises:
        ValueError: It is none.
    """
    if isinstance(value, bool | str) or not 0 <= float(value) < math.inf:
        raise ValueError(f"expected a number of at least 0, found {value!r}")
    return float(value)


def _path(job_id: str) -> str:
    return f"/api/jobs/{urllib.parse.quote(job_id, safe='')}"


def find_token() -> str | None:
    """The user's token, looked for where Ray itself does.

    Raises:
        RefusedJobError: It cannot be read or sent; the message does not show it.
    """
    if token := os.environ.get("RAY_AUTH_TOKEN", "").strip():
        return _sendable(token, "RAY_AUTH_TOKEN")
    given = os.environ.get("RAY_AUTH_TOKEN_PATH")
    path = Path(given) if given else Path.home() / ".ray" / "auth_token"
    where = f"RAY_AUTH_TOKEN_PATH names '{given}', and" if given else f"the default token file {path}:"
    try:
        return _sendable(path.read_text(encoding="utf-8").strip(), f"what {path} holds") or None
    except (FileNotFoundError, NotADirectoryError):
        if given:
            raise RefusedJobError(f"{where} there is no such file: {HOW_TO_GIVE_A_TOKEN}") from None
        return None
    except OSError as error:
        raise RefusedJobError(
            f"{where} that cannot be read as a file ({error.strerror}): {HOW_TO_GIVE_A_TOKEN}"
        ) from None
    except UnicodeDecodeError:
        raise RefusedJobError(f"{where} that is not text: {HOW_TO_GIVE_A_TOKEN}") from None


def _sendable(token: str, where: str) -> str:
    """``token``, as it can be sent in a header: one line of ASCII."""
    if token.isascii() and token.isprintable():
        return token
    # It is a secret: neither it nor the part that is wrong is shown.
    raise RefusedJobError(
        f"{where} is no token: it holds a line break, a control character or one that is not ASCII, and a"
        f" token is one line of ASCII: {HOW_TO_GIVE_A_TOKEN}"
    )
