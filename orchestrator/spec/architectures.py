"""Keys of ``model.config`` that its Hugging Face architecture does not have, found without importing it.

Importing transformers takes ten times as long as everything else a look at a job file does, so the source
of the architecture's configuration is read as text. Too many names are taken for keys rather than too few:
what is complained about is wrong, and the rest is judged when the model is built (``models.make_config``).
"""

from __future__ import annotations

import functools
import re
from collections.abc import Iterator, Mapping
from importlib.util import find_spec
from pathlib import Path
from typing import NamedTuple

from orchestrator.spec.job import Job, TrainStage
from orchestrator.spec.messages import suggestion
from orchestrator.spec.tree import KeyPath

BASE = "PreTrainedConfig"
CLASS = re.compile(r"^class (\w+)\(([\w, .]*)\):\n((?:(?:[ )].*)?\n)*)", re.MULTILINE)
FIELD = re.compile(r"^    (\w+): ", re.MULTILINE)
NUMBER = re.compile(r"^    (\w+): [^=\n]*= (\d+)$", re.MULTILINE)
# Such as "hidden_size": "n_embd".
ALIAS = re.compile(r"""["'](\w+)["']: ["'](\w+)["']""")
# Attributes, methods, whatever is quoted (an attribute map, keyword arguments) or set.
OTHER = re.compile(r"""^    (\w+) =|^    def (\w+)|["'](\w+)["']|self\.(\w+)""", re.MULTILINE)
# Takes part in every configuration, though only as an argument: sdpa, eager, flash_attention_2 and so on.
ATTENTION = "attn_implementation"


def check_architecture(job: Job, stage: TrainStage, path: KeyPath) -> Iterator[tuple[KeyPath, str]]:
    """Each unknown key of the stage's ``model.config``, if its architecture can be read."""
    if stage.model is None or stage.model.factory != "auto":
        return
    model_type = str(stage.model.config["model_type"])
    known = read_architecture(model_type)
    if known is None:
        return
    for key in stage.model.config:
        if key not in {"model_type", ATTENTION} | known.fields | known.others:
            hint = suggestion(key, sorted(known.fields), plural="Its keys")
            yield (
                (*path, "model", "config", key),
                f"unknown key of the architecture '{model_type}'.{hint}",
            )


class Architecture(NamedTuple):
    """What the source of an architecture's configuration says."""

    fields: frozenset[str]
    others: frozenset[str]
    """Other names it may be given."""
    defaults: Mapping[str, int]
    """Of those fields that have a whole number."""
    aliases: Mapping[str, str]
    """What the architecture calls what others call ``hidden_size`` and so on."""


@functools.cache
def read_architecture(model_type: str) -> Architecture | None:
    """The architecture of this name; ``None``: its source cannot be read as expected."""
    spec = find_spec("transformers")
    if spec is None or spec.origin is None or not re.fullmatch(r"[\w-]+", model_type):
        return None
    package, module = Path(spec.origin).parent, model_type.replace("-", "_")
    try:
        text = (package / "models" / module / f"configuration_{module}.py").read_text("utf-8")
        base = (package / "configuration_utils.py").read_text("utf-8")
    except OSError:
        return None
    classes = {name: (bases, body) for name, bases, body in CLASS.findall(text)}
    own = [name for name, (_, body) in classes.items() if f'    model_type = "{model_type}"\n' in body]
    bodies = [body for name, _, body in CLASS.findall(base) if name == BASE]
    if len(own) != 1 or len(bodies) != 1:
        return None
    name = own[0]
    while name != BASE:
        if name not in classes:
            return None
        name, body = classes[name]
        bodies.append(body)
    # A class comes before what it is derived from, and its values win.
    numbers = {key: int(value) for body in reversed(bodies) for key, value in NUMBER.findall(body)}
    return Architecture(
        frozenset(field for body in bodies for field in FIELD.findall(body)),
        frozenset(name for body in bodies for found in OTHER.findall(body) for name in found),
        numbers,
        dict(alias for body in bodies for alias in ALIAS.findall(body)),
    )
