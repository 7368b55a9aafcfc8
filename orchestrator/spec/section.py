"""What every section of a job file has in common: checked when built, never changed after.

A section is a class with annotated attributes, declared as one would declare a pydantic model. Its
annotations are compiled straight to pydantic's engine (``compile.py``): importing ``BaseModel`` and
letting it inspect forty classes takes longer than everything else ``orchestrator validate`` does
(README, start-up). pydantic itself accepts sections wherever it accepts a type.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping
from typing import Any, Literal, Self, dataclass_transform

from pydantic_core import ArgsKwargs, CoreSchema

from orchestrator.spec.compile import (
    ChosenBy,
    Must,
    field,
    fields_of,
    section_schema,
    validator,
)

__all__ = ["ChosenBy", "Must", "Section", "field", "require_one"]


@dataclass_transform(kw_only_default=True, frozen_default=True, field_specifiers=(field,))
class Section:
    """One mapping of the job file."""

    def __init__(self, **values: Any) -> None:
        """Check ``values`` and take them over.

        Raises:
            pydantic_core.ValidationError: An unknown or missing key, or a value of the wrong kind.
        """
        validator(type(self)).validate_python(ArgsKwargs((), values), self_instance=self)

    def __post_init__(self) -> None:
        """Compare keys of this section with each other; ``ValueError`` says what is wrong."""

    @classmethod
    def model_validate(cls, values: Mapping[str, Any]) -> Self:
        """The section that ``values`` describes, keyed as in the job file."""
        made: Self = validator(cls).validate_python(values)
        return made

    def model_dump(
        self,
        *,
        mode: Literal["json", "python"] = "python",
        by_alias: bool = False,
        exclude: Collection[str] = (),
    ) -> dict[str, Any]:
        """The section as a dictionary, like pydantic's ``model_dump``; ``json`` has no tuples."""
        keys = {known.name: key for key, known in fields_of(type(self)).items()}
        return {
            keys[name] if by_alias else name: _dumped(value, mode, by_alias)
            for name, value in self.__dict__.items()
            if name not in exclude
        }

    def model_copy(self, *, update: Mapping[str, Any]) -> Self:
        """A checked copy in which the attributes of ``update`` have other values."""
        return type(self)(**{**self.__dict__, **update})

    @classmethod
    def __get_pydantic_core_schema__(cls, source: Any, handler: Any) -> CoreSchema:
        """Let pydantic's own models and ``TypeAdapter`` hold sections."""
        return section_schema(cls)

    def __setattr__(self, name: str, value: Any) -> None:
        raise AttributeError(f"{type(self).__name__}.{name} cannot change; copy with 'model_copy'")

    def __delattr__(self, name: str) -> None:
        raise AttributeError(f"{type(self).__name__}.{name} cannot be deleted")

    def __eq__(self, other: object) -> bool:
        return type(self) is type(other) and self.__dict__ == other.__dict__

    def __repr__(self) -> str:
        values = ", ".join(f"{name}={value!r}" for name, value in self.__dict__.items())
        return f"{type(self).__name__}({values})"


def require_one(section: Section, *keys: str) -> None:
    """Raise ``ValueError`` unless exactly one of ``keys`` is given."""
    given = [f"'{key}'" for key in keys if getattr(section, key) is not None]
    if len(given) != 1:
        choices = ", ".join(f"'{key}'" for key in keys)
        found = " and ".join(given) or "none"
        raise ValueError(f"give exactly one of {choices}, found {found}")


def _dumped(value: Any, mode: Literal["json", "python"], by_alias: bool) -> Any:
    if isinstance(value, Section):
        return value.model_dump(mode=mode, by_alias=by_alias)
    if isinstance(value, dict):
        return {key: _dumped(item, mode, by_alias) for key, item in value.items()}
    if isinstance(value, list | tuple):
        items = [_dumped(item, mode, by_alias) for item in value]
        return items if mode == "json" or isinstance(value, list) else tuple(items)
    return value
