"""An interpreter of pickles that calls nothing but what a list allows, however the bytes are put together.

Python's own unpickler, given such a list, still lets a pickle set attributes of the functions on it, hash tuples that
hold each other two to the power of thirty times, or fill memory from a few bytes. Here each operation that could do so
is either checked or refused.
"""

from __future__ import annotations

import pickle
import re
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

LARGEST_PICKLE = 64 << 20  # bytes, tensors aside; the original's own checkpoints need less than a hundredth
PLAIN_KEYS = (str, bytes, int, float, type(None))

# Operations that make plain values, fill lists and dictionaries, remember values, or name what the list must allow.
OPERATIONS = re.findall(
    r"\w+",
    "PROTO FRAME STOP MARK POP POP_MARK DUP NONE NEWTRUE NEWFALSE INT LONG LONG1 LONG4 BININT BININT1 BININT2 FLOAT "
    "BINFLOAT STRING BINSTRING SHORT_BINSTRING UNICODE BINUNICODE SHORT_BINUNICODE BINUNICODE8 BINBYTES "
    "SHORT_BINBYTES BINBYTES8 EMPTY_LIST LIST EMPTY_DICT EMPTY_TUPLE TUPLE TUPLE1 TUPLE2 TUPLE3 GET BINGET LONG_BINGET "
    "PUT BINPUT LONG_BINPUT MEMOIZE GLOBAL STACK_GLOBAL",
)


class Refused(pickle.UnpicklingError):
    """The pickle asks for something that the list does not allow."""


@dataclass(frozen=True)
class Allowed:
    """A function that a pickle may call; the pickle holds this wrapper, so it can neither change nor inspect it."""

    call: Callable[..., Any]


def _kind(value: Any) -> str:
    return "function" if type(value) is Allowed else type(value).__name__


class _Operations(dict):
    def __missing__(self, code: int) -> Any:
        raise Refused(f"it holds the operation {code:#04x}, which no plain value needs")


class StrictUnpickler(pickle._Unpickler):
    """Python's interpreter of pickles, reduced; a subclass says what names stand for, and which classes have a state.

    Raises Refused for whatever is not allowed; a damaged pickle raises what Python's own interpreter raises.
    """

    classes_with_state: frozenset[type] = frozenset()
    largest = LARGEST_PICKLE  # bytes

    def __init__(self, file: Any, **options: Any) -> None:
        super().__init__(file, **options)
        read, readline = self._file_read, self._file_readline
        left = self.largest

        def counted(content: bytes) -> bytes:
            nonlocal left
            left -= len(content)
            if left < 0:
                raise Refused(f"its values take more than {self.largest >> 20} MB")
            return content

        self._file_read = lambda size: counted(read(min(size, left + 1)))
        self._file_readline = lambda: counted(readline())

    def find_class(self, module: str, name: str) -> Any:
        """What a name stands for: an `Allowed`, or an inert value."""
        raise Refused(f"it asks for {module}.{name}")

    def call(self, target: Any, arguments: tuple) -> Any:
        """The result of calling what `find_class` returned."""
        if type(target) is not Allowed:
            raise Refused(f"it calls a {type(target).__name__}")
        return target.call(*arguments)

    def set_state(self, instance: Any, state: Any) -> None:
        """Give an instance what it held when it was stored."""
        if type(instance) not in self.classes_with_state:
            raise Refused(f"it sets attributes of a {_kind(instance)}")
        if hasattr(instance, "__setstate__"):
            instance.__setstate__(state)
        elif isinstance(state, dict):
            instance.__dict__.update(state)
        else:
            raise Refused(f"it sets attributes of a {type(instance).__name__} by a {type(state).__name__}")

    def set_items(self, target: Any, pairs: list[tuple[Any, Any]]) -> None:
        """Fill a dictionary."""
        if type(target) is not dict:
            raise Refused(f"it sets entries of a {_kind(target)}")
        for key, value in pairs:
            self.check_key(key)
            target[key] = value

    def check_key(self, key: Any) -> None:
        """Let only those keys of dictionaries through whose hash takes no time."""
        if not isinstance(key, PLAIN_KEYS):
            raise Refused(f"it holds a dictionary whose key is a {type(key).__name__}")

    def extend(self, target: Any, values: list[Any]) -> None:
        """Fill a list."""
        if type(target) is not list:
            raise Refused(f"it appends to a {_kind(target)}")
        target.extend(values)

    def persistent(self, identifier: Any) -> Any:
        """What stands for something that is stored outside the pickle."""
        raise Refused("it refers to something outside itself")

    def _call(self) -> None:
        arguments, target = self.stack.pop(), self.stack.pop()
        if type(arguments) is not tuple:
            raise Refused(f"it calls something with a {type(arguments).__name__}")
        self.append(self.call(target, arguments))

    def _set_state(self) -> None:
        state = self.stack.pop()
        self.set_state(self.stack[-1], state)

    def _set_item(self) -> None:
        value, key = self.stack.pop(), self.stack.pop()
        self.set_items(self.stack[-1], [(key, value)])

    def _set_marked_items(self) -> None:
        values = self.pop_mark()
        self.set_items(self.stack[-1], list(zip(values[::2], values[1::2], strict=True)))

    def _make_dictionary(self) -> None:
        values = self.pop_mark()
        self.append({})
        self.set_items(self.stack[-1], list(zip(values[::2], values[1::2], strict=True)))

    def _append(self) -> None:
        value = self.stack.pop()
        self.extend(self.stack[-1], [value])

    def _append_marked(self) -> None:
        values = self.pop_mark()
        self.extend(self.stack[-1], values)

    def _bytearray(self) -> None:
        size = int.from_bytes(self.read(8), "little")
        self.append(bytearray(self.read(size)))  # Python's own takes the memory before it reads

    def _persistent(self) -> None:
        self.append(self.persistent(self.stack.pop()))

    dispatch = _Operations((getattr(pickle, name)[0], None) for name in OPERATIONS)
    dispatch.update((code, pickle._Unpickler.dispatch[code]) for code in list(dispatch))
    dispatch[pickle.REDUCE[0]] = _call
    dispatch[pickle.NEWOBJ[0]] = _call  # a class is on the list as the function that makes its instances
    dispatch[pickle.BUILD[0]] = _set_state
    dispatch[pickle.SETITEM[0]] = _set_item
    dispatch[pickle.SETITEMS[0]] = _set_marked_items
    dispatch[pickle.DICT[0]] = _make_dictionary
    dispatch[pickle.APPEND[0]] = _append
    dispatch[pickle.APPENDS[0]] = _append_marked
    dispatch[pickle.BYTEARRAY8[0]] = _bytearray
    dispatch[pickle.BINPERSID[0]] = _persistent
