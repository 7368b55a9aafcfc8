"""The jobs service of a Ray cluster over HTTP, with its token; ``status`` needs no Ray for it.

Source: Ray Jobs REST API, docs.ray.io; token authentication, Ray 2.60.
"""

from __future__ import annotations

import json
import os
import urllib.error
import urllib.parse
import urllib.request
from pathlib import Path
from typing import Any

from launchers.base import RefusedJobError
from orchestrator.errors import LaunchError

DEFAULT_ADDRESS = "http://127.0.0.1:8265"
TIMEOUT_SECONDS = 30
HOW_TO_GIVE_A_TOKEN = (
    "set RAY_AUTH_TOKEN_PATH to the file that holds the cluster's token (or RAY_AUTH_TOKEN to the token),"
    " and RAY_AUTH_MODE=token"
)


class JobsService:
    """One cluster's jobs service."""

    def __init__(self, address: str | None) -> None:
        """``None`` stands for RAY_API_SERVER_ADDRESS, or this machine."""
        self.address = (address or os.environ.get("RAY_API_SERVER_ADDRESS") or DEFAULT_ADDRESS).rstrip("/")
        if not self.address.startswith(("http://", "https://")):
            raise RefusedJobError(
                f"launcher.options.address is '{self.address}', expected the cluster's jobs service such as"
                " 'http://HEAD:8265'"
            )

    def headers(self) -> dict[str, str]:
        """What proves to a cluster that asks for a token that this user may use it; it goes nowhere else.

        Raises:
            RefusedJobError: It asks, and there is none.
        """
        if self._request("GET", "/api/authentication_mode", {}).get("authentication_mode") != "token":
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
        found: dict[str, Any] | None = self.request("GET", f"/api/jobs/{urllib.parse.quote(job_id, safe='')}")
        return found

    def _request(self, method: str, path: str, headers: dict[str, str]) -> Any:
        request = urllib.request.Request(self.address + path, method=method, headers=headers)
        try:
            with urllib.request.urlopen(request, timeout=TIMEOUT_SECONDS) as answer:
                return json.loads(answer.read() or b"null")
        except urllib.error.HTTPError as error:
            if error.code == 404:
                return {} if path == "/api/authentication_mode" else None
            raise self._refusal(error) from error
        except (OSError, ValueError) as error:
            reason = getattr(error, "reason", error)
            raise LaunchError(
                f"no Ray jobs service answers at {self.address} ({reason}): start the head with its dashboard"
                " ('ray start --head --include-dashboard=true'), or correct --address"
            ) from error

    def _refusal(self, error: urllib.error.HTTPError) -> LaunchError:
        text = error.read().decode(errors="replace").strip()[:500]
        if error.code in (401, 403):
            return RefusedJobError(
                f"the Ray cluster at {self.address} does not take the token that was sent ({text}):"
                f" {HOW_TO_GIVE_A_TOKEN}"
            )
        return LaunchError(f"the Ray cluster at {self.address} answered {error.code}: {text}")


def find_token() -> str | None:
    """The user's token, looked for where Ray itself does."""
    if token := os.environ.get("RAY_AUTH_TOKEN", "").strip():
        return token
    given = os.environ.get("RAY_AUTH_TOKEN_PATH")
    path = Path(given) if given else Path.home() / ".ray" / "auth_token"
    try:
        return path.read_text(encoding="utf-8").strip() or None
    except FileNotFoundError:
        if given:
            raise RefusedJobError(f"RAY_AUTH_TOKEN_PATH names '{given}', and there is no such file") from None
        return None
