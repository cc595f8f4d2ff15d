"""Flags from dataclass fields: one field = one flag = one entry of ``--help`` = one row of the README's tables.

The fields are in `train_config` and the modules beside it. Imports no TensorFlow, so that a wrong flag is reported at
once.
"""

import dataclasses
import difflib
import itertools
import math
import re
import typing
from collections.abc import Callable, Mapping, Sequence
from typing import Any, ClassVar, TypeVar

from absl import flags

from petseg import custom_code
from petseg.errors import ConfigError

SCORING, TRAINING = "scoring", "training"  # when user code runs: also when a trained run is used, or only in training
T = TypeVar("T")
G = TypeVar("G", bound="Group")


@dataclasses.dataclass(frozen=True)
class Allowed:
    """The allowed values of a field."""

    choices: tuple[str, ...] = ()  # the only values, if not empty, beside `others`
    # further values by their description; a name that ends in a colon begins values
    others: Mapping[str, tuple[str, ...]] = dataclasses.field(default_factory=dict)
    minimum: float | None = None  # smallest number
    above: float | None = None  # exclusive lower bound
    maximum: float | None = None  # largest number
    below: float | None = None  # exclusive upper bound
    multiple_of: int | None = None  # divisor of the value
    required: bool = False  # whether an empty text is invalid
    # when user code that the text may name runs, SCORING or TRAINING; empty if it must not name code
    code: str = ""

    def words(self, kind: Any) -> str:
        """Describes the allowed values, to follow "must be" in an error."""
        named = "one of " + ", ".join([*filter(None, self.choices), *self.others])
        if self.code and (self.choices or not self.required):
            return f"{named}, or {custom_code.FORM}" if self.choices else custom_code.FORM
        if self.choices:
            return named
        if kind is bool:
            return "true or false"
        if kind is str:
            return "a non-empty text" if self.required else "a text"
        text = "a whole number" if kind is int else "a number"
        if self.minimum is not None:
            text += f" of at least {self.minimum:.10g}"
        if self.above is not None:
            text += f" above {self.above:.10g}"
        if self.maximum is not None:
            text += f" and at most {self.maximum:.10g}"
        if self.below is not None:
            text += f" and below {self.below:.10g}"
        if self.multiple_of is not None:
            text += f", divisible by {self.multiple_of}"
        return text

    def short_range(self) -> str:
        """The range of a number in a few characters, such as "0 to 1" or ">0"; empty if it is any number from 0 on."""
        if self.minimum is not None and self.maximum is not None:
            return f"{self.minimum:.10g} to {self.maximum:.10g}"
        lower = f">{self.above:.10g}" if self.above is not None else f">={self.minimum:.10g}" if self.minimum else ""
        upper = f"<={self.maximum:.10g}" if self.maximum is not None else ""
        upper = f"<{self.below:.10g}" if self.below is not None else upper
        return ", ".join(filter(None, (lower, upper)))

    def names(self) -> list[str]:
        """All names that a text may be; it may continue those that end in a colon."""
        return [*self.choices, *itertools.chain(*self.others.values())]

    def admits(self, value: Any, kind: Any) -> bool:
        """Whether a field of this type may have the value."""
        if kind is float and type(value) is int:
            value = float(value)
        if type(value) is not kind:
            return False
        if self.code and (custom_code.is_reference(value) or not (value or self.choices or self.required)):
            return True
        if kind is str and self.code and not self.choices and not self.required:
            return False
        if kind is str and self.choices:
            return any(_is_named(value, name) for name in self.names())
        if kind is str:
            return bool(value.strip()) or not self.required
        if kind is float and not math.isfinite(value):
            return False
        return (
            (self.minimum is None or value >= self.minimum)
            and (self.above is None or value > self.above)
            and (self.maximum is None or value <= self.maximum)
            and (self.below is None or value < self.below)
            and (self.multiple_of is None or value % self.multiple_of == 0)
        )


def _is_named(value: str, name: str) -> bool:
    return (value.startswith(name) and value != name) if name.endswith(":") else value == name


def sides(text: str) -> tuple[int, int]:
    """Parses height and width from a number for both or `HEIGHT,WIDTH`; (0, 0) if the text is neither."""
    parts = re.fullmatch(r"(\d{1,5})(?:,(\d{1,5}))?", text)
    return (int(parts[1]), int(parts[2] or parts[1])) if parts else (0, 0)


def numbers(text: str) -> tuple[float, ...]:
    """Parses finite numbers separated by commas; empty if the text is anything else."""
    try:
        found = tuple(float(part) for part in text.split(","))
    except ValueError:
        return ()
    return found if all(map(math.isfinite, found)) else ()


def option(
    default: Any, help: str, *, kind: type | None = None, unit: str = "", resume: str = "free", **allowed: Any
) -> Any:
    """Creates a dataclass field that is also a flag.

    Args:
      resume: "fixed" if a checkpoint written under another value cannot be continued, else "free".
      **allowed: the arguments of `Allowed`.
    """
    kind = kind or type(default)
    metadata = {"help": help, "kind": kind, "unit": unit, "resume": resume, "allowed": Allowed(**allowed)}
    return dataclasses.field(default=default, metadata=metadata)


def near_names(text: str, names: Sequence[str]) -> str:
    """A clause with the names that are spelled like a text, to follow the list of all; empty if there are none."""
    spelled: dict[str, str] = {}
    for name in names:
        spelled.setdefault(re.sub(r"[^a-z0-9]", "", name.lower()), name)
    text = re.sub(r"[^a-z0-9]", "", text.lower())
    longer = [each for each in spelled if text and each.startswith(text)]
    close = [text] if text in spelled else dict.fromkeys([*longer, *difflib.get_close_matches(text, spelled)])
    near = [spelled[each] for each in close]
    return f"; did you mean {' or '.join(near[:3])}?" if near else ""


def flag_name(field: dataclasses.Field[Any]) -> str:
    """The flag of a field: its name, without the final underscore of names that Python reserves (`from_`: --from)."""
    return field.name.removesuffix("_")


@dataclasses.dataclass(frozen=True)
class Group:
    """Base class of dataclasses whose fields are flags; validates them on construction.

    Raises ConfigError if a field has an invalid value.
    """

    exclusive: ClassVar[tuple["Exclusive", ...]] = ()

    def changed(self: G, **changes: Any) -> G:
        """Returns the group with other values, each of which also switches off a flag that it excludes."""
        values = {field.name: getattr(self, field.name) for field in dataclasses.fields(self)} | changes
        for pair in self.exclusive:
            changes |= pair.loser(values, {name: 0 if name in changes else -1 for name in pair.off})
        return dataclasses.replace(self, **changes)

    def __post_init__(self) -> None:
        for field in dataclasses.fields(self):
            value, kind, allowed = getattr(self, field.name), field.metadata["kind"], field.metadata["allowed"]
            if not (value is None and field.default is None) and not allowed.admits(value, kind):
                near = near_names(str(value), allowed.names())
                raise ConfigError(f"--{flag_name(field)}={value}: must be {allowed.words(kind)}{near}")


@dataclasses.dataclass(frozen=True)
class Exclusive:
    """Two mutually exclusive flags of a group: the one given later switches the other one off.

    So a flag can override a flag of another name in a preset.
    """

    off: Mapping[str, Any]  # the two flags, each with the value that switches it off
    clash: Callable[[Any, Any], bool]  # whether two values, in the order of `off`, are contradictory

    def loser(self, values: Mapping[str, Any], given: Mapping[str, int]) -> dict[str, Any]:
        """Returns the flag to switch off and its value; empty if the flags agree, or neither is later."""
        first, second = self.off
        if given[first] == given[second] or not self.clash(values[first], values[second]):
            return {}
        name = first if given[first] < given[second] else second
        return {name: self.off[name]}


def groups(config_class: Any) -> dict[str, type[Group]]:
    """The groups of a config class by field name; a class that is itself a group has the empty name."""
    if issubclass(config_class, Group):
        return {"": config_class}
    types = typing.get_type_hints(config_class)
    return {field.name: types[field.name] for field in dataclasses.fields(config_class)}


class _Parser(flags.ArgumentParser):
    """Parses the text of a flag; the error describes the allowed values."""

    def __init__(self, kind: type, allowed: Allowed, *, optional: bool):
        self._kind, self._allowed, self._optional = kind, allowed, optional

    def parse(self, argument: Any) -> Any:
        if not isinstance(argument, str):
            return argument
        if self._optional and not argument:
            return None  # so that a later flag can reset the value of a preset
        try:
            if self._kind is bool:
                return {"true": True, "t": True, "1": True, "false": False, "f": False, "0": False}[argument.lower()]
            return self._kind(argument)
        except (ValueError, KeyError):
            raise ValueError(f"must be {self._allowed.words(self._kind)}") from None

    def flag_type(self) -> str:
        return self._kind.__name__


def define_flags(config_class: type, flag_values: flags.FlagValues) -> None:
    """Defines one flag for each field of a config class."""
    for group in groups(config_class).values():
        for field in dataclasses.fields(group):
            kind, metadata = field.metadata["kind"], field.metadata
            parser: Any = _Parser(kind, metadata["allowed"], optional=field.default is None)
            if kind is bool:  # absl's class for --name and --noname
                flag = flags.BooleanFlag(flag_name(field), field.default, metadata["help"])
                flag.parser = parser
            else:
                flag = flags.Flag(parser, flags.ArgumentSerializer(), flag_name(field), field.default, metadata["help"])
            flags.DEFINE_flag(flag, flag_values)


def switch_off_excluded(config_class: type, flag_values: flags.FlagValues, arguments: Sequence[str]) -> None:
    """Switches off parsed flags that a later flag excludes."""
    for group in groups(config_class).values():
        for pair in group.exclusive:
            values = {name: flag_values[name].value for name in pair.off}
            for name, off in pair.loser(values, {name: last_given(name, arguments) for name in pair.off}).items():
                flag_values[name].value = off


def last_given(name: str, arguments: Sequence[str]) -> int:
    """Position of the last argument that gives a flag a value; -1 if there is none."""
    pattern = re.compile(rf"--?(no)?{name}(=.*)?", re.DOTALL)
    return max((i for i, argument in enumerate(arguments) if pattern.fullmatch(argument)), default=-1)


def from_flags(config_class: type[T], flag_values: flags.FlagValues) -> T:
    """Builds a config from parsed flags.

    Raises ConfigError if a value is invalid, or two values contradict each other.
    """
    parts = {
        name: group(**{field.name: flag_values[flag_name(field)].value for field in dataclasses.fields(group)})
        for name, group in groups(config_class).items()
    }
    return parts[""] if "" in parts else config_class(**parts)  # type: ignore[return-value]


def as_arguments(values: Mapping[str, Any]) -> list[str]:
    """Values by the names of their flags, as arguments of a command line: `{"epochs": 3}` -> `["--epochs=3"]`.

    Raises ConfigError for a function that is not at the top level of a module.
    """

    def text(name: str, value: Any) -> str:
        if callable(value):
            return custom_code.reference_to(name, value)
        return ",".join(map(str, value)) if isinstance(value, list | tuple) else str(value)

    return [f"--{name}={text(name, value)}" for name, value in values.items() if value is not None]


def rows(config_class: type) -> list[tuple[str, str, str, str]]:
    """A row for each field: group, flag, default, help with unit, range and those choices that the help leaves out."""
    found = []
    for name, group in groups(config_class).items():
        for field in dataclasses.fields(group):
            kind, allowed, help_text = (field.metadata[key] for key in ("kind", "allowed", "help"))
            default = "" if field.default is None else f"{field.default}"
            default = default.lower() if kind is bool else default
            number = " ".join(filter(None, (allowed.short_range(), field.metadata["unit"])))
            help_text += f" ({number})" if number else ""
            if any(f"`{choice}`" not in help_text for choice in filter(None, allowed.choices)):
                help_text += f"; {allowed.words(kind)}"
            found.append((name, flag_name(field), default, help_text))
    return found


def markdown_table(config_class: type, *, without: Sequence[str] = ()) -> str:
    """The README's table of the flags, without those of some groups."""
    cells = [
        f"`--{flag}{f'={default}' if default else ''}` | {help_text}"
        for name, flag, default, help_text in rows(config_class)
        if name not in without
    ]
    return "\n".join(["flag and default | description", "--- | ---", *cells])
