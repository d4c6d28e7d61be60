"""Command-line flags generated from dataclasses: one flag per field."""

from __future__ import annotations

import dataclasses
import functools
import inspect
import operator
import re
import sys
import types
import typing
from collections.abc import Callable, Mapping, Sequence
from typing import Any, TypeVar

from absl import flags

T = TypeVar("T")
_NONE, _DEFAULT = "none", "default"


class FieldParser(flags.ArgumentParser):
    """Turns the text of a flag into the value of a dataclass field.

    Args:
        convert: text -> value; raises ValueError for a text it cannot convert.
        kind: what the help calls the value, such as "an integer".
        word_for_none: the text that stands for None, in upper or lower case; None if
            the field cannot be None.
    """

    def __init__(
        self,
        convert: Callable[[str], Any],
        kind: str,
        word_for_none: str | None = None,
    ) -> None:
        super().__init__()
        self.convert, self.word_for_none = convert, word_for_none
        self.syntactic_help = f"{kind}, or {word_for_none}" if word_for_none else kind

    def parse(self, argument: Any) -> Any:
        """Returns the value a text stands for; non-text values are returned as is."""
        if not isinstance(argument, str):
            return argument
        if argument.lower() == self.word_for_none:
            return None
        return self.convert(argument)


class FieldSerializer(flags.ArgumentSerializer):
    """Turns a field's value into the text to write on a command line.

    Args:
        word_for_none: the text that stands for None.
    """

    def __init__(self, word_for_none: str | None = None) -> None:
        self.word_for_none = word_for_none or _NONE

    def serialize(self, value: Any) -> str:
        """Returns the text that `FieldParser.parse` turns back into this value."""
        if value is None:
            return self.word_for_none
        if isinstance(value, Mapping):
            pairs = [
                f"{name}:{'/'.join('*' if b is None else str(b) for b in pair)}"
                for name, pair in value.items()
            ]
            return ",".join(pairs) or "{}"
        if isinstance(value, (tuple, list)):
            return ",".join(map(str, value))
        return str(value)


def define_flags(cls: type, defaults: Mapping[str, Any] | None = None) -> None:
    """Defines a flag for each field of a dataclass.

    Name, type and default are the field's; the help is its entry in the `Args` section
    of the docstring. Tuples are written as comma lists, Literals as one of the choices.
    For fields that may be None the word is `none`, or `default` where "none" is itself
    one of the choices. A field that is a dataclass is replaced by its own fields.

    Args:
        cls: a dataclass whose fields are plain values, tuples, Literals or dataclasses.
        defaults: field name -> default in this command, where it differs from the
            field's own.
    """
    hints, help_texts = typing.get_type_hints(cls), field_help(cls)
    for field in dataclasses.fields(cls):
        hint = hints[field.name]
        if dataclasses.is_dataclass(hint):
            define_flags(typing.cast(type, hint), defaults)
            continue
        default = (defaults or {}).get(field.name, field.default)
        _define(field.name, hint, default, help_texts.get(field.name, ""))


def from_flags(cls: type[T], inherited: Mapping[str, Any] | None = None) -> T:
    """Makes a dataclass from the parsed flags.

    Args:
        cls: the dataclass `define_flags` was called with.
        inherited: field name -> value for flags not given on the command line.

    Returns:
        An instance of `cls`.

    Raises:
        ValueError: the dataclass refuses a value.
    """
    hints = typing.get_type_hints(cls)
    fields = dataclasses.fields(cls)  # type: ignore[arg-type]
    return cls(
        **{f.name: _value(f.name, hints[f.name], inherited or {}) for f in fields}
    )


def _value(name: str, hint: Any, inherited: Mapping[str, Any]) -> Any:
    if dataclasses.is_dataclass(hint):
        return from_flags(typing.cast(type, hint), inherited)
    flag = flags.FLAGS[name]
    return inherited[name] if name in inherited and not flag.present else flag.value


def field_help(cls: type) -> dict[str, str]:
    """Reads the description of each field from the docstrings of a dataclass.

    Base classes are read first, so a subclass may describe an inherited field anew.

    Args:
        cls: a dataclass with Google-style docstrings.

    Returns:
        Field name -> text in one line, without backquotes.
    """
    texts: dict[str, str] = {}
    for base in reversed(cls.__mro__):
        # Python 3.13 strips the indentation of docstrings, older versions do not.
        doc = inspect.cleandoc(base.__dict__.get("__doc__") or "")
        section = re.search(r"\n\s*Args:\n(.*?)(\n\s*\n|\Z)", doc, re.DOTALL)
        if section:
            entries = re.split(r"\n?^ {4}(\w+): ", section[1], flags=re.MULTILINE)[1:]
            pairs = zip(entries[::2], entries[1::2], strict=True)
            texts |= {name: _one_line(text) for name, text in pairs}
    return texts


def _one_line(text: str) -> str:
    return " ".join(text.replace("`", "").split())


def _define(name: str, hint: Any, default: Any, text: str) -> None:
    # absl's --help lists only flags of the main module: each flag is registered under
    # the name of the program, whichever module defines it.
    module = sys.argv[0]
    if hint is bool:
        flags.DEFINE_boolean(
            name, default, text, flag_values=flags.FLAGS, module_name=module
        )
    else:
        parser = _parser(hint)
        flags.DEFINE(
            parser, name, default, text, flags.FLAGS,
            FieldSerializer(parser.word_for_none), module_name=module,
        )  # fmt: skip


def _parser(hint: Any) -> FieldParser:
    word = word_for_none(hint)
    hint, _ = _without_none(hint)
    origin, arguments = typing.get_origin(hint), typing.get_args(hint)
    if origin is typing.Literal:
        return FieldParser(_choice(arguments), f"one of {', '.join(arguments)}", word)
    if origin in (typing.Union, types.UnionType):
        return FieldParser(_size, "a whole number or HEIGHTxWIDTH", word)
    if isinstance(origin, type) and issubclass(origin, Mapping):
        return FieldParser(
            _layer_bits,
            "a comma list of layer:weight/activation, * for a side that is searched",
            word,
        )
    if isinstance(origin, type) and issubclass(origin, Sequence):
        convert, kind = _scalar(arguments[0])
        return FieldParser(_comma_list(convert), f"a comma list, each {kind}", word)
    return FieldParser(*_scalar(hint), word)


def field_types(cls: type) -> dict[str, Any]:
    """Returns field name -> type; inner dataclasses are replaced by their own fields.

    Args:
        cls: a dataclass.
    """
    hints = typing.get_type_hints(cls)
    found: dict[str, Any] = {}
    for field in dataclasses.fields(cls):
        hint = hints[field.name]
        inner = dataclasses.is_dataclass(hint)
        found |= field_types(typing.cast(type, hint)) if inner else {field.name: hint}
    return found


def word_for_none(hint: Any) -> str | None:
    """Returns the word that stands for None on a command line.

    Args:
        hint: the type of a field.

    Returns:
        "none", or "default" where "none" is one of the field's choices; None where the
        field cannot be None.
    """
    kind, optional = _without_none(hint)
    if not optional:
        return None
    choices = typing.get_args(kind) if typing.get_origin(kind) is typing.Literal else ()
    return _DEFAULT if _NONE in choices else _NONE


def _without_none(hint: Any) -> tuple[Any, bool]:
    if typing.get_origin(hint) not in (typing.Union, types.UnionType):
        return hint, False
    kinds = [kind for kind in typing.get_args(hint) if kind is not type(None)]
    others = functools.reduce(operator.or_, kinds)
    return others, len(kinds) < len(typing.get_args(hint))


def _scalar(kind: type) -> tuple[Callable[[str], Any], str]:
    if kind is bool:
        return flags.BooleanParser().parse, "true or false"
    kinds = {int: "a whole number", float: "a number", str: "a text"}
    return kind, kinds[kind]


def _choice(valid: tuple[str, ...]) -> Callable[[str], str]:
    def convert(text: str) -> str:
        if text.lower() == _NONE and _NONE in valid:
            return _NONE
        if text not in valid:
            raise ValueError(f"must be one of {', '.join(valid)}")
        return text

    return convert


def _comma_list(convert: Callable[[str], Any]) -> Callable[[str], tuple]:
    return lambda text: tuple(convert(item.strip()) for item in text.split(",") if item)


def _size(text: str) -> int | tuple[int, int]:
    """Parses a size in pixels: `32`, or height and width as in `32x24`."""
    sides = re.split("[x,]", text.lower())
    if len(sides) > 2 or not all(side.strip().isdecimal() for side in sides):
        raise ValueError("must be such as 96, or 32x24 for height and width")
    numbers = tuple(map(int, sides))
    return numbers[0] if len(numbers) == 1 else (numbers[0], numbers[1])


def _layer_bits(text: str) -> dict[str, tuple[int | None, int | None]]:
    """Parses `layer:weight bits/activation bits,...`, `*` for None; `{}`: no layer."""
    pairs = [] if text == "{}" else text.split(",")
    form = r"\s*([^:,]+):(\d+|\*)/(\d+|\*)\s*"
    matches = [re.fullmatch(form, pair) for pair in pairs]
    if not all(matches):
        raise ValueError("must be such as conv1:8/8,head:8/8, or {} for no layer")
    return {m[1]: (_bits_or_none(m[2]), _bits_or_none(m[3])) for m in matches if m}


def _bits_or_none(text: str) -> int | None:
    return None if text == "*" else int(text)
