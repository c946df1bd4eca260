"""Options of commands made from dataclasses, so that name, default, choices and help of a setting stand once."""

import dataclasses
import inspect
import re
from collections.abc import Callable, Collection, Sequence
from types import NoneType, UnionType
from typing import Any, Literal, get_args, get_origin, get_type_hints

import click

Command = Callable[..., Any]


def attribute_docs(kind: type) -> dict[str, str]:
    """The sentences of the "Attributes" section of a class's docstring and of its bases', by attribute."""
    docs: dict[str, str] = {}
    for each in reversed(kind.__mro__):
        text = inspect.cleandoc(each.__doc__ or "")
        section = re.search(r"^Attributes:\n(.*?)(?:\n\n|\Z)", text, re.DOTALL | re.MULTILINE)
        if section is None:
            continue
        for entry in re.split(r"\n(?= {4}\w)", "\n" + section[1]):
            name, _, sentence = entry.strip().partition(": ")
            docs[name] = " ".join(sentence.split())
    return docs


def _kind_of(hint: Any) -> dict[str, Any]:
    """How click shall parse values of a type."""
    if get_origin(hint) is Literal:
        return {"type": click.Choice(get_args(hint))}
    if get_origin(hint) is UnionType:  # X | None
        return _kind_of(next(part for part in get_args(hint) if part is not NoneType))
    if get_origin(hint) is Sequence:
        return {"multiple": True}
    return {"is_flag": True} if hint is bool else {"type": hint}


def options_of(kind: type, leave_out: Collection[str] = ()) -> Callable[[Command], Command]:
    """A decorator that gives a command one option for each field of a dataclass.

    Args:
        kind: the dataclass; its docstring says under "Attributes" what each field means.
        leave_out: fields that get no option.
    """
    hints, docs = get_type_hints(kind), attribute_docs(kind)

    def decorate(command: Command) -> Command:
        for each in reversed(dataclasses.fields(kind)):
            if each.name in leave_out:
                continue
            default = () if each.default is dataclasses.MISSING else each.default
            flag = f"--{each.name.replace('_', '-')}"
            command = click.option(flag, default=default, help=docs[each.name], **_kind_of(hints[each.name]))(command)
        return command

    return decorate
