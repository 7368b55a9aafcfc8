"""An address that is no Ray jobs service is one message that says which is."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from pathlib import Path

import pytest

from launchers.ray_http import NODES, ClusterNode, JobsService
from launchers.submission_record import Submission, read_submission
from orchestrator.checkpoint.layout import RunLayout
from orchestrator.errors import LaunchError
from tests.unit.launchers.commands import Console, Ended
from tests.unit.launchers.jobs_service import Serve, answer, ray
from tests.unit.spec.jobs import VALID, write_job

ANSWERS: Mapping[str, Callable[[str], bytes]] = {
    "the port of the head": lambda path: b"\x00\x00\x18\x04\x00\x00\x00\x00\x00\x00\x04\x00@",
    "SSH": lambda path: b"SSH-2.0-OpenSSH_9.2\r\n",
    "a page": lambda path: answer("<html>hello</html>"),
    "nothing found": lambda path: answer("nope", 404),
    "an error": lambda path: answer("boom", 500),
    "an error without a word": lambda path: answer("", 500),
    "a torn error": lambda path: b"HTTP/1.1 500 Said\r\nContent-Length: 100\r\n\r\nx",
    "a torn answer": lambda path: b"HTTP/1.1 200 OK\r\nContent-Length: 100\r\n\r\n{",
    "itself elsewhere": lambda path: answer("", 302, f"Location: {path}\r\n"),
    "an object": lambda path: answer('{"a": 1}'),
    "no object": lambda path: answer("{}"),
    "numbers": lambda path: answer("[1, 2]"),
    "null": lambda path: answer("null"),
    "text": lambda path: answer('"text"'),
    "jobs without a state": ray({"/api/jobs/": [{"submission_id": "tiny"}]}),
}


ASKING = ray({"/api/authentication_mode": {"authentication_mode": "token"}})


def submit(console: Console, folder: Path, address: str) -> Ended:
    command = ("submit", write_job(folder, VALID), "--launcher", "ray", "--runs-dir", folder / "runs")
    return console(*command, "--address", address)


@pytest.mark.parametrize("name", ANSWERS)
def test_what_is_no_jobs_service_is_told_from_one(
    name: str, serve: Serve, console: Console, tmp_path: Path
) -> None:
    address = serve(ANSWERS[name])
    ended = submit(console, tmp_path, address)
    assert ended.code == 1, ended.errors
    assert "unexpected" not in ended.errors
    assert f" at {address} " in ended.errors
    assert "correct --address: it is that of the head's dashboard, such as http://HEAD:8265" in ended.errors
    assert list((tmp_path / "runs").iterdir()) == []
    layout = RunLayout(tmp_path / "runs" / "tiny")
    Submission.of_now("ray", "tiny", {"address": address}).write(layout)
    for command in ("status", "logs", "cancel"):
        asked = console(command, "tiny", "--runs-dir", tmp_path / "runs")
        assert asked.code == (0 if command == "status" else 1)
        assert "unexpected" not in asked.errors
        assert "correct --address" in asked.errors


@pytest.mark.parametrize(
    "address",
    [
        "http://a b:1",
        "http://127.0.0.1:1;touch x",
        "http://[::1",
        "http://",
        "http://:8265",
        "http://head:99999",
        "http://head:0",
        "http://head:8265/?a=b",
        "head:8265",
        "ray://head:10001",
    ],
)
def test_a_malformed_address_is_refused(
    address: str, console: Console, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    ended = submit(console, tmp_path, address)
    said = f"is '{address}', expected the cluster's jobs service such as 'http://HEAD:8265'"
    assert (ended.code, ended.errors.startswith(f"launcher.options.address {said}")) == (2, True), ended
    monkeypatch.setenv("RAY_API_SERVER_ADDRESS", address)
    command = ("submit", write_job(tmp_path, VALID), "--launcher", "ray", "--runs-dir", tmp_path / "runs")
    ended = console(*command)
    assert (ended.code, ended.errors.startswith(f"RAY_API_SERVER_ADDRESS {said}")) == (2, True), ended


def test_a_job_that_the_service_has_forgotten_has_no_log(
    serve: Serve, console: Console, tmp_path: Path
) -> None:
    address = serve(ray({"/api/jobs/": []}))
    Submission.of_now("ray", "tiny", {"address": address}).write(RunLayout(tmp_path / "tiny"))
    ended = console("logs", "tiny", "--runs-dir", tmp_path)
    assert (ended.code, ended.errors) == (2, f"{tmp_path}/tiny has no log yet: no stage of it has started\n")
    status = console("status", "tiny", "--runs-dir", tmp_path)
    assert (status.code, status.errors) == (0, "")


class Cluster:
    """A jobs service that takes a job and gives no answer."""

    def __init__(self, *, then: str, listed_after: int = 0) -> None:
        """Take over what becomes of it then: ``taken``, ``proxied``, ``another's``, ``lost`` or ``gone``."""
        self.is_sent, self.times_asked = False, 0
        self._then, self._listed_after = then, listed_after
        self.run_dir = Path()

    def __call__(self, path: str) -> bytes:
        """The answer; none at all is a connection that breaks."""
        if path == "POST /api/jobs/":
            self.is_sent = True
            return answer("Bad Gateway", 502) if self._then == "proxied" else b""
        if path == "/api/jobs/":
            return self._list()
        known = {"/api/version": {"version": "4", "ray_version": "2.60.0"}}
        return answer(json.dumps(known.get(path, {})))

    def _list(self) -> bytes:
        if not self.is_sent:
            return answer("[]")
        if self._then == "gone":
            return b""
        self.times_asked += 1
        if self._then == "lost" or self.times_asked <= self._listed_after:
            return answer("[]")
        run_dir = "/elsewhere" if self._then == "another's" else str(self.run_dir)
        return answer(
            json.dumps([{"submission_id": "tiny", "status": "PENDING", "metadata": {"run_dir": run_dir}}])
        )


@pytest.mark.parametrize(("then", "listed_after"), [("taken", 0), ("taken", 2), ("proxied", 0)])
def test_a_job_whose_submission_lost_its_answer_is_submitted(
    then: str, listed_after: int, serve: Serve, console: Console, tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    monkeypatch.setattr("launchers.ray.LOOK_SECONDS", 0)
    cluster = Cluster(then=then, listed_after=listed_after)
    cluster.run_dir = tmp_path / "runs" / "tiny"
    ended = submit(console, tmp_path, serve(cluster))
    assert (ended.code, ended.output.splitlines()[0]) == (0, "tiny submitted to ray as tiny"), ended.errors
    found = read_submission(RunLayout(cluster.run_dir))
    assert found is not None
    assert found.job_id == "tiny"


@pytest.mark.parametrize(
    ("then", "message"),
    [
        ("lost", "has no job of this run: look once more with 'ray job list --address={address}'"),
        ("another's", "has no job of this run: look once more"),
        ("gone", "It may have the job, as 'tiny': look with 'ray job status tiny --address={address}', and"),
    ],
)
def test_a_job_that_may_not_have_been_taken_is_not_recorded(
    then: str, message: str, serve: Serve, console: Console, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("launchers.ray.LOOK_SECONDS", 0)
    address = serve(Cluster(then=then))
    ended = submit(console, tmp_path, address)
    assert ended.code == 1
    assert "\nthe submission of tiny got no answer: " in ended.errors
    assert message.format(address=address) in ended.errors
    assert list((tmp_path / "runs").iterdir()) == []


@pytest.mark.parametrize("code", [301, 302, 303, 307, 308])
def test_the_token_goes_to_no_address_that_the_cluster_points_to(
    code: int, serve: Serve, console: Console, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("RAY_AUTH_TOKEN", "secret")
    asked = list[str]()

    def note(path: str) -> bytes:
        asked.append(path)
        return answer("[]")

    target = f"{serve(note)}/api/jobs/"

    def said(path: str) -> bytes:
        return answer("", code, f"Location: {target}\r\n") if path.endswith("/jobs/") else ASKING(path)

    address = serve(said)
    ended = submit(console, tmp_path, address)
    assert (ended.code, asked) == (1, [])
    assert f"what answers at {address} redirects ({code}) to '{target}', where nothing is" in ended.errors


@pytest.mark.parametrize("code", [401, 403])
@pytest.mark.parametrize("from_the_start", [True, False])
def test_a_refusal_speaks_of_a_token_only_where_one_was_sent(
    code: int, from_the_start: bool, serve: Serve, console: Console, tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    monkeypatch.setenv("RAY_AUTH_TOKEN", "secret")
    known = {"/api/authentication_mode": {"authentication_mode": "disabled"}}
    open_to_all = ray({} if from_the_start else known)

    def said(path: str) -> bytes:
        found = open_to_all(path)
        return answer("keep out", code) if b"nothing" in found else found

    address = serve(said)
    ended = submit(console, tmp_path, address)
    assert ended.code == 2
    assert ended.errors.startswith(
        f"what answers at {address} refused the request ({code}: keep out), and no token was sent"
    )
    address = serve(lambda path: ASKING(path) if "authentication" in path else answer("keep out", code))
    ended = submit(console, tmp_path, address)
    assert ended.code == 2
    assert f"{address} does not take the token that was sent (keep out)" in ended.errors
    assert "secret" not in ended.errors


@pytest.mark.parametrize("token", ["sec\nret", "sec\x1bret", "secr\u00e9t", "sec\r\nHost: x"])
@pytest.mark.parametrize("is_file", [False, True])
def test_a_token_that_cannot_be_sent_is_refused_and_not_shown(
    token: str, is_file: bool, serve: Serve, console: Console, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "token").write_text(token, encoding="utf-8")
    if is_file:
        monkeypatch.delenv("RAY_AUTH_TOKEN", raising=False)
        monkeypatch.setenv("RAY_AUTH_TOKEN_PATH", str(tmp_path / "token"))
    else:
        monkeypatch.setenv("RAY_AUTH_TOKEN", token)
    ended = submit(console, tmp_path, serve(ASKING))
    name = f"what {tmp_path}/token holds" if is_file else "RAY_AUTH_TOKEN"
    assert (ended.code, ended.errors.startswith(f"{name} is no token: ")) == (2, True), ended.errors
    assert "sec" not in ended.errors


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (None, "there is no such file"),
        ("folder", "cannot be read as a file (Is a directory)"),
        (b"\xff", "is not text"),
    ],
)
def test_a_token_file_that_cannot_be_read_is_refused_by_its_variable(
    content: str | bytes | None, message: str, serve: Serve, console: Console, tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    path = tmp_path / "token"
    if isinstance(content, bytes):
        path.write_bytes(content)
    elif content:
        path.mkdir()
    monkeypatch.delenv("RAY_AUTH_TOKEN", raising=False)
    monkeypatch.setenv("RAY_AUTH_TOKEN_PATH", str(path))
    ended = submit(console, tmp_path, serve(ASKING))
    assert (ended.code, ended.errors.startswith(f"RAY_AUTH_TOKEN_PATH names '{path}', and")) == (2, True)
    assert message in ended.errors


def listed(**changed: object) -> str:
    node = {"state": "ALIVE", "resources_total": {"CPU": 2.0}, "start_time_ms": 1000, **changed}
    return json.dumps({"data": {"result": {"result": [node]}}})


def test_the_nodes_of_a_cluster_are_those_that_live(serve: Serve) -> None:
    address = serve(lambda path: answer(listed() if path == NODES else "{}"))
    assert JobsService(address).nodes() == [ClusterNode({"CPU": 2.0, "GPU": 0.0}, 1.0)]
    address = serve(lambda path: answer(listed(state="DEAD") if path == NODES else "{}"))
    assert JobsService(address).nodes() == []


@pytest.mark.parametrize(
    "sent",
    [
        "null",
        "[]",
        '{"data": {"result": null}}',
        '{"data": {"result": {"result": [7]}}}',
        listed(resources_total=None),
        listed(resources_total={"CPU": "2"}),
        listed(resources_total={"CPU": float("inf")}),
        listed(resources_total={"GPU": float("nan")}),
        listed(resources_total={"CPU": -1}),
        listed(resources_total={"CPU": 10**400}),
        listed(resources_total={"CPU": True}),
        listed(start_time_ms=None),
        listed(start_time_ms="\x1b[2J"),
    ],
)
def test_what_does_not_tell_of_nodes_is_said_not_to(sent: str, serve: Serve) -> None:
    address = serve(lambda path: answer(sent if path == NODES else "{}"))
    with pytest.raises(LaunchError, match=r"does not tell of its nodes \(it sent [ -~]*\), as Ray 2.60 does"):
        JobsService(address).nodes()
