"""From a job file to a ``Job``, and from a run's ``job.yaml`` back to the same one.

1. Read the file and the files it extends; ``${ENV}`` is interpolated scalar by scalar.
2. Apply ``--set``, merge ``defaults`` under the training stages, make paths absolute.
3. Refuse what looks like a secret; check types, keys and ranges; check sections against each other.

Every problem found carries its file and line, and all are raised together. The resolved job is plain:
no ``extends``, no ``defaults``, no variables, every default written out.
"""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from pydantic_core import ValidationError

from orchestrator.errors import Problem, SpecError
from orchestrator.spec import references
from orchestrator.spec.environment import interpolate, secrets_in, without_secrets
from orchestrator.spec.job import Job
from orchestrator.spec.messages import explain, is_echo, nearest, shown
from orchestrator.spec.overrides import FLAG, OverrideError, set_key, split_override
from orchestrator.spec.paths import make_paths_absolute
from orchestrator.spec.salvage import check_rest
from orchestrator.spec.tree import Items, KeyPath, Place, Table, inherited, key_text, merge, place_of, plain
from orchestrator.spec.unmerged import Unmerged, lacked_key, name_complaints, unmerged_stages
from orchestrator.spec.yaml12 import MAX_BYTES, UNREADABLE, dump, parse

Check = Callable[[Job], Iterable[tuple[KeyPath, str]]]
"""What else a caller knows to be wrong with a job, by key path."""


@dataclass(frozen=True)
class Values:
    """What a caller sets in a job that has been read."""

    place: str = ""
    """Where they stand, for messages; relative paths among them begin in its folder."""
    by_key: Mapping[str, Any] = field(default_factory=dict)
    """Named as after ``--set``."""


def load_job(path: Path, *, overrides: Sequence[str] = (), env: Mapping[str, str] | None = None) -> Job:
    """The job that ``path`` describes.

    Args:
        overrides: ``KEY=VALUE`` each, as after ``--set``.
        env: Variables for ``${NAME}``; absent: those of this process.

    Raises:
        SpecError: Everything wrong with the file, each with file, line and key.
    """
    return _load(path, overrides, os.environ if env is None else env, lambda job: (), Values())


def load_checked(
    path: Path, check: Check, *, overrides: Sequence[str] = (), values: Values | None = None
) -> Job:
    """Like ``load_job``, with the complaints of ``check`` about a job that is sound in itself.

    Args:
        values: Set after the overrides.
    """
    return _load(path, overrides, os.environ, check, values or Values())


def _load(
    path: Path, overrides: Sequence[str], environment: Mapping[str, str], check: Check, values: Values
) -> Job:
    problems: list[Problem] = []

    def quoted(text: str) -> str:
        return interpolate(text, environment)

    unmerged: Unmerged = {}
    root = _read_with_bases(path, quoted, problems, unmerged, chain=())
    _apply_overrides(root, overrides, quoted, problems)
    _apply_values(root, values, problems)
    make_paths_absolute(root)
    _merge_defaults(root, problems)
    secrets = list(secrets_in(root, (), root.place))
    problems += [problem for _, problem in secrets]
    return _check(root, problems, unmerged, hidden={path for path, _ in secrets}, check=check)


def load_resolved(path: Path) -> Job:
    """The job that ``dump_resolved`` wrote to ``path``; nothing in it is interpolated.

    Raises:
        SpecError: The file is not such a job.
    """
    return parse_resolved(_text(path), str(path))


def parse_resolved(text: str, where: str) -> Job:
    """The same of its text, which is from ``where``."""
    problems: list[Problem] = []
    root = _as_table(parse(text, where, quoted=str, problems=problems), where)
    return _check(root, problems, {}, hidden=set(), check=lambda job: ())


def dump_resolved(job: Job) -> str:
    """``job`` as YAML text, the only form in which it travels."""
    return dump(job.model_dump(mode="json", by_alias=True))


def _text(path: Path) -> str:
    """The text of a file of at most ``MAX_BYTES``."""

    def problem(message: str) -> SpecError:
        return SpecError([Problem(str(path), None, "", message)])

    try:
        with path.open("rb") as file:
            content = file.read(MAX_BYTES + 1)
    except IsADirectoryError as error:
        files = sorted(path.glob("*.yaml"))
        example = f", such as '{files[0]}'" if files else " (.yaml)"
        raise problem(f"is a folder; give a job file{example}") from error
    except FileNotFoundError as error:
        raise problem(f"no such file.{_meant(path)}") from error
    except OSError as error:
        raise problem(f"cannot be read: {error.strerror}") from error
    if len(content) > MAX_BYTES:
        raise problem(f"larger than {MAX_BYTES} bytes, which no job file is")
    try:
        return content.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        byte = f"byte 0x{content[error.start]:02x} at position {error.start}"
        raise problem(f"not a text file in UTF-8: {byte}") from error


def _meant(path: Path) -> str:
    """Which job file was probably meant by ``path``, which is none."""
    files = {file.stem: file for file in sorted(path.parent.glob("*.yaml"))}
    near = nearest(path.stem, list(files))
    return f" Did you mean '{files[near]}'?" if near else ""


def _as_table(document: Any, file: str) -> Table:
    if isinstance(document, Table):
        return document
    found = "an empty file" if document is None else shown(document)
    raise SpecError([Problem(file, None, "", f"expected keys such as 'name' and 'stages', found {found}")])


def _read_with_bases(
    path: Path,
    quoted: Callable[[str], str],
    problems: list[Problem],
    unmerged: Unmerged,
    chain: tuple[str, ...],
) -> Table:
    """The table of ``path`` on top of the file it extends, and so on.

    Args:
        problems: Receives what is wrong but leaves the rest readable.
        unmerged: Receives the stages that a file has and the one it extends has not.
    """
    root = _as_table(parse(_text(path), str(path), quoted=quoted, problems=problems), str(path))
    base = root.pop("extends", None)
    if base is None:
        return root
    place = root.places["extends"]

    def problem(message: str) -> SpecError:
        return SpecError([Problem(place.file, place.line, "extends", message)])

    if not isinstance(base, str):
        raise problem(f"expected the path of another job file, found {shown(base)}")
    chain = (*chain, os.path.realpath(path))
    base_path = Path(os.path.join(os.path.dirname(path), os.path.expanduser(base)))
    if os.path.realpath(base_path) in chain:
        raise problem(f"'{base}' extends this file in turn; a file cannot build on itself")
    if not base_path.is_file():
        raise problem(f"no such file: '{base_path}'")
    extended = _read_with_bases(base_path, quoted, problems, unmerged, chain)
    unmerged.update(unmerged_stages(extended, root))
    merged = merge(extended, root)
    assert isinstance(merged, Table)
    return merged


def _apply_overrides(
    root: Table, overrides: Sequence[str], quoted: Callable[[str], str], problems: list[Problem]
) -> None:
    for override in overrides:
        try:
            key, text = split_override(override)
            found: list[Problem] = []
            value = parse(text, FLAG, quoted=quoted, problems=found)
            problems += [Problem(FLAG, None, key, problem.message) for problem in found]
            set_key(root, key, value)
        except OverrideError as error:
            problems.append(error.problem)
        except SpecError as error:
            problems += [Problem(FLAG, None, key, problem.message) for problem in error.problems]


def _apply_values(root: Table, values: Values, problems: list[Problem]) -> None:
    place = Place(values.place, None)
    for key, value in values.by_key.items():
        try:
            # JSON is YAML; what looks like a variable in it is text by now.
            set_key(root, key, parse(json.dumps(value), values.place, quoted=str, problems=problems), place)
        except OverrideError as error:
            problems.append(error.problem)


def _merge_defaults(root: Table, problems: list[Problem]) -> None:
    """Put ``defaults`` under every stage that trains; a stage's own model or first weights win."""
    if "defaults" not in root:
        return
    defaults = root.pop("defaults")
    place = root.places["defaults"]
    if not isinstance(defaults, Table):
        message = f"expected a section of keys that training stages share, found {shown(defaults)}"
        problems.append(Problem(place.file, place.line, "defaults", message))
        return
    stages = root.get("stages")
    if not isinstance(stages, Items):
        return
    for index, stage in enumerate(stages):
        if not isinstance(stage, Table) or stage.get("kind", "train") != "train":
            continue
        shared = inherited(defaults)
        init = stage.get("init")
        if isinstance(init, Table) and "checkpoint" not in init:
            shared.pop("model", None)
        elif "model" in stage and "init" not in stage:
            shared.pop("init", None)
        stages[index] = merge(shared, stage, ("stages", index))


def _check(
    root: Table, problems: list[Problem], unmerged: Unmerged, *, hidden: set[KeyPath], check: Check
) -> Job:
    """The job in ``root``; raises ``problems`` together with what is wrong with it.

    Args:
        hidden: Paths whose values no message may show, and that have their problem already.
    """

    def problem(path: KeyPath, message: str) -> Problem:
        place = place_of(root, path)
        if place.inherited and path[0] == "stages":
            path = ("defaults", *path[2:])
        return Problem(place.file, place.line, key_text(path), message)

    try:
        job = Job.model_validate(plain(root))
    except ValidationError as failure:
        errors = [error for error in failure.errors(include_url=False) if not is_echo(error)]
        explained = [(*explain(error, Job), error) for error in errors]
        refused = [path for path, _, _ in explained]
        named = name_complaints(root, explained, unmerged)
        problems += [problem(path, message) for path, message in named.values()]
        for path, message, error in explained:
            is_said = lacked_key(error, path) is not None and path[1] in named
            if path not in hidden and UNREADABLE not in message and not is_said:
                problems.append(problem(path, message))
        rest = [found for found in check_rest(plain(root), refused) if found[0] not in hidden]
        problems += [problem(path, message) for path, message in rest]
    else:
        rest = [found for found in (*references.check(job), *check(job)) if found[0] not in hidden]
        problems += [problem(path, message) for path, message in rest]
    if problems:
        found = dict.fromkeys(without_secrets(problem) for problem in problems)
        raise SpecError(sorted(found, key=lambda problem: (problem.file, problem.line or 0)))
    return job
