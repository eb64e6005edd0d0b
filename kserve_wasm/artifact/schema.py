"""Reading documents that people and tools write: values are checked where read; complaints say where."""

from __future__ import annotations

import math
import re
import sys
from collections.abc import Callable, Collection, Mapping
from typing import Any, NoReturn, TypeAlias, TypeVar

from kserve_wasm.errors import ModelLoadError
from kserve_wasm.tensors import DTYPES, TensorSpec

T = TypeVar("T")
Where = tuple["str | int", ...]

NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,252}")
VERSION = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,62}")
_DURATION = re.compile(r"(\d{1,15}(?:\.\d{1,9})?) ?(us|µs|ms|s)")
_DURATIONS = {"us": 1e-6, "µs": 1e-6, "ms": 1e-3, "s": 1.0}
_SIZE = re.compile(r"(\d{1,15}(?:\.\d{1,3})?) ?([KMGT]i|[kMGT])?B?")
_UNITS = {"Ki": 2**10, "Mi": 2**20, "Gi": 2**30, "Ti": 2**40, "k": 10**3, "M": 10**6, "G": 10**9, "T": 10**12}
_KINDS = {
    dict: "a mapping",
    list: "a list",
    str: "text",
    bool: "true or false",
    int: "an integer",
    float: "a number",
}


class Node:
    """A value of a document and its place there.

    Args:
        value: what the parser made of it.
        complain: raises the document's error for a place and a message.
        where: the keys and indices that lead here.
    """

    def __init__(self, value: Any, complain: Callable[[Where, str], NoReturn], where: Where = ()) -> None:
        self.value = value
        self.where = where
        self._complain = complain

    def fail(self, message: str) -> NoReturn:
        """Raises the document's error for this place."""
        self._complain(self.where, message)

    def child(self, key: str | int) -> Node:
        """The value below ``key``, which must be there."""
        return Node(self.value[key], self._complain, (*self.where, key))

    def mapping(self, allowed: Collection[str], required: Collection[str] = ()) -> dict[str, Node]:
        """The values by key; unknown and missing keys fail."""
        fields = {key: self.field(key, allowed) for key in self.names()}
        for key in required:
            if key not in fields:
                self.fail(f"the key '{key}' is missing")
        return fields

    def names(self) -> list[str]:
        """The keys of a mapping."""
        return list(self._expect(dict))

    def field(self, key: str, allowed: Collection[str]) -> Node:
        """The value below a key of a mapping, which must be one of ``allowed``."""
        if key not in allowed:
            self.fail(f"unknown key {_show(key)}; the keys here are {', '.join(allowed)}")
        return self.child(key)

    def entries(self) -> dict[str, Node]:
        """The values of a mapping, whose keys are any text."""
        for key in self._expect(dict):
            if not isinstance(key, str):
                self.fail(f"expected text as key, got {_show(key)}")
        return {key: self.child(key) for key in self.names()}

    def read(self, readers: Readers) -> dict[str, Any]:
        """What ``readers`` make of a mapping's values; fails with all mistakes, a line for each."""
        values, mistakes = {}, []
        for key in self.names():
            try:
                child = self.field(key, readers)
                values[key] = readers[key](child)
            except ModelLoadError as error:  # noqa: PERF203
                mistakes.append(error)
        if mistakes:
            raise type(mistakes[0])("\n".join(map(str, mistakes)))
        return values

    def items(self) -> list[Node]:
        """The values of a list."""
        return [self.child(i) for i in range(len(self._expect(list)))]

    def free(self) -> dict[str, Any]:
        """A mapping that is passed on as it stands: text as keys, and values that JSON can hold."""
        for value in self.entries().values():
            value._check_plain()
        return dict(self.value)

    def _check_plain(self) -> None:
        if isinstance(self.value, dict):
            self.free()
        elif isinstance(self.value, list):
            for item in self.items():
                item._check_plain()
        elif isinstance(self.value, float):
            if not math.isfinite(self.value):
                self.fail(f"expected a finite number, got {_show(self.value)}")
        elif self.value is not None and not isinstance(self.value, (str, int)):
            self.fail(f"expected text, a number, true or false, a list or a mapping, got {_show(self.value)}")

    def text(self, pattern: re.Pattern[str] | None = None) -> str:
        """Text that is not empty, holds no control characters, and matches ``pattern`` wholly."""
        value: str = self._expect(str)
        if not value:
            self.fail("expected text, got an empty string")
        if not value.isprintable():
            self.fail(f"expected text without control characters, got {_show(value)}")
        if pattern is not None and not pattern.fullmatch(value):
            self.fail(f"expected letters, digits, '.', '_' and '-' only, got {_show(value)}")
        return value

    def choice(self, choices: Collection[str]) -> str:
        """One of ``choices``."""
        value: str = self._expect(str)
        if value not in choices:
            self.fail(f"expected one of {', '.join(choices)}; got {_show(value)}")
        return value

    def boolean(self) -> bool:
        """True or false."""
        return bool(self._expect(bool))

    def integer(self, minimum: int, maximum: int = 2**63 - 1) -> int:
        """An integer within these bounds."""
        value: int = self._expect(int)
        if not minimum <= value <= maximum:
            self.fail(f"expected an integer from {minimum} to {maximum}, got {_show(value)}")
        return value

    def number(self) -> float:
        """A finite number."""
        value = self._expect(int) if isinstance(self.value, int) else self._expect(float)
        if not abs(value) <= sys.float_info.max:
            self.fail(f"expected a finite number, got {_show(self.value)}")
        return float(value)

    def seconds(self, *, zero: bool = False) -> float:
        """A duration above zero, or of zero where that may be: seconds, or text such as ``2ms``."""
        if isinstance(self.value, str):
            found = _DURATION.fullmatch(self.value)
            if found is None:
                self.fail(f"expected a duration such as 0.5, 500us, 2ms or 30s; got {_show(self.value)}")
            value = float(found[1]) * _DURATIONS[found[2]]
        else:
            value = self._expect(int) if isinstance(self.value, int) else self._expect(float)
        if not 0 <= value < 1e9 or not (value or zero):
            self.fail(f"expected seconds {'of 0 or more' if zero else 'above 0'}, got {_show(self.value)}")
        return float(value)

    def size(self, maximum: int = 2**63 - 1) -> int:
        """A number of bytes: an integer, or text such as ``256Mi``."""
        if isinstance(self.value, str):
            found = _SIZE.fullmatch(self.value)
            if found is None:
                self.fail(f"expected a size such as 1048576, 64Ki, 256Mi or 1Gi; got {_show(self.value)}")
            value = int(float(found[1]) * _UNITS.get(found[2], 1))
        else:
            value = self._expect(int)
        if not 0 <= value <= maximum:
            self.fail(f"expected a size from 0 to {maximum} bytes, got {_show(self.value)}")
        return value

    def tensor_specs(self) -> tuple[TensorSpec, ...]:
        """A list of ``{name, datatype, shape}``; open dimensions are -1 or a symbol."""
        specs: dict[str, TensorSpec] = {}
        for item in self.items():
            fields = item.mapping(_SPEC_KEYS, required=_SPEC_KEYS)
            name = fields["name"].text()
            if name in specs:
                fields["name"].fail(f"{_show(name)} is listed twice")
            dtype = DTYPES[fields["datatype"].choice(DTYPES)]
            specs[name] = TensorSpec(name, dtype, tuple(d._dimension() for d in fields["shape"].items()))
        return tuple(specs.values())

    def _dimension(self) -> int | str | None:
        if isinstance(self.value, str):
            return self.text()
        size = self.integer(minimum=-1)
        return None if size == -1 else size

    def _expect(self, kind: type[T]) -> T:
        # bool is an int in Python, and never what a number is meant to be here.
        if type(self.value) is not kind:
            self.fail(f"expected {_KINDS[kind]}, got {_show(self.value)}")
        return self.value


Readers: TypeAlias = Mapping[str, Callable[[Node], Any]]
"""What reads the value of each key that a mapping may have."""

_SPEC_KEYS = ("name", "datatype", "shape")


def _show(value: object) -> str:
    if isinstance(value, (dict, list)):
        return _KINDS[type(value)]
    if value is None:
        return "nothing"
    text = repr(value) if isinstance(value, (str, int, float, bool)) else f"a {type(value).__name__}"
    return text if len(text) <= 80 else text[:80] + "…"


def dump_specs(specs: Collection[TensorSpec]) -> list[dict[str, Any]]:
    """What :meth:`Node.tensor_specs` reads."""
    return [
        {"name": s.name, "datatype": s.dtype.name, "shape": [-1 if d is None else d for d in s.shape]}
        for s in specs
    ]
