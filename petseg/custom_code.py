"""User code that flags name: `FILE.py:name` or `package.module:name`."""

import contextlib
import functools
import hashlib
import importlib
import importlib.machinery
import importlib.util
import inspect
import re
import sys
import traceback
from collections.abc import Callable, Iterator
from pathlib import Path
from types import ModuleType
from typing import Any

from petseg.errors import ConfigError, PetsegError, one_line

REFERENCE = re.compile(r"(?!(?i:hub:))(.+\.py|[A-Za-z_]\w*(\.[A-Za-z_]\w*)*):[A-Za-z_]\w*")
FORM = "FILE.py:function or package.module:function"
MAIN = "__main__"


class _SourceLoader(importlib.machinery.SourceFileLoader):
    """Loads a module from its source, never from Python's cache, which may miss a change within a second."""

    def get_code(self, fullname: str) -> Any:
        return self.source_to_code(self.get_data(self.path), self.path)


def is_reference(value: Any) -> bool:
    """Whether the value of a flag names code, rather than a choice of petseg's own."""
    return isinstance(value, str) and REFERENCE.fullmatch(value) is not None


def reference_to(flag: str, code: Callable[..., Any]) -> str:
    """The reference to a function or class: `module:name`.

    Raises ConfigError if it is not at the top level of a module, so that no reference leads to it.
    """
    module, name = getattr(code, "__module__", None), getattr(code, "__qualname__", "")
    if not callable(code) or not name.isidentifier() or getattr(sys.modules.get(module or ""), name, None) is not code:
        raise ConfigError(
            f"--{flag}={name or code!r}: must be a function or class at the top level of a module, script or notebook"
        )
    return f"{module}:{name}"


def source_file(flag: str, reference: str) -> Path:
    """The source file of a reference; finding a module in a package imports the package.

    Raises ConfigError if there is no such file or module.
    """
    place = reference.rpartition(":")[0]
    if place.endswith(".py"):
        if not Path(place).is_file():
            raise ConfigError(f"--{flag}={reference}: there is no file {place}")
        return Path(place)
    origin: str | None
    if place in sys.modules:  # `__main__` has no spec
        origin = getattr(sys.modules[place], "__file__", None)
    else:
        try:
            spec = importlib.util.find_spec(place)
        except (ImportError, ValueError):
            spec = None
        origin = spec.origin if spec else None
    if not origin or not Path(origin).is_file():
        raise ConfigError(f"--{flag}={reference}: there is no module {place}")
    return Path(origin)


def load(flag: str, reference: str) -> Callable[..., Any]:
    """The function or class of a reference. Raises ConfigError if it does not exist, or its file cannot be imported."""
    place, _, name = reference.rpartition(":")
    try:
        code = getattr(_module(flag, reference, place), name, None)
    except ConfigError:
        raise
    except Exception as error:  # user code may raise anything
        raise ConfigError(f"--{flag}={reference}: cannot be imported: {explanation(reference, error)}") from error
    if not callable(code):
        where = "this program" if place == MAIN else source_file(flag, reference)
        raise ConfigError(f"--{flag}={reference}: there is no function {name} in {where}")
    return code


def function_of(flag: str, reference: str) -> Callable[..., Any] | None:
    """The function of a reference as its file is now; None if the reference is empty.

    Any exception of the function becomes a ConfigError of one line.
    """
    if not reference:
        return None
    function = load(flag, reference)

    @functools.wraps(function)  # for its signature
    def called(*arguments: Any, **named: Any) -> Any:
        with explained(flag, reference):
            return function(*arguments, **named)

    return called


def call(flag: str, reference: str, *arguments: Any) -> Any:
    """Calls the function of a reference once; see `function_of`."""
    with explained(flag, reference):
        return load(flag, reference)(*arguments)


def check_arity(flag: str, reference: str, count: int) -> None:
    """Raises ConfigError if a reference is given, and its function does not take `count` positional arguments."""
    if not reference:
        return
    try:
        inspect.signature(load(flag, reference)).bind(*range(count))
    except TypeError as error:
        raise ConfigError(f"--{flag}={reference}: must take {count} arguments: {error}") from error


@contextlib.contextmanager
def explained(flag: str, reference: str) -> Iterator[None]:
    """Converts any exception of the user's code to a ConfigError of one line; changes nothing without a reference."""
    try:
        yield
    except PetsegError:
        raise
    except Exception as error:  # user code may raise anything
        if not reference:
            raise
        raise ConfigError(f"--{flag}={reference}: failed: {explanation(reference, error)}") from error


def explanation(reference: str, error: Exception) -> str:
    """An exception in one line, with the line of the reference's file in which it was raised, if it was there."""
    place = reference.rpartition(":")[0]
    file = str(Path(place)) if place.endswith(".py") else getattr(sys.modules.get(place), "__file__", None)
    lines = [line for frame, line in traceback.walk_tb(error.__traceback__) if frame.f_code.co_filename == file]
    reason = one_line(error)
    if "as a Python `bool` is not allowed" in reason:  # the rest of TensorFlow's text would not help
        reason = "decides by a tensor with Python's `if`; must use tf.where or tf.cond"
    return f"{reason} (line {lines[-1]})" if lines else reason


def described(value: Any) -> str:
    """What a function of the user returned, for errors: dtype and shape of tensors, the type of other values."""
    if isinstance(value, tuple):
        return f"({', '.join(map(described, value))})"
    if hasattr(value, "dtype") and hasattr(value, "shape"):
        kind = "numpy " if type(value).__module__ == "numpy" else ""  # where a tensor may be wanted
        return f"{kind}{getattr(value.dtype, 'name', value.dtype)} {list(value.shape)}"
    return type(value).__name__


def fingerprint(flag: str, reference: str) -> str:
    """SHA-256 of the source file of a reference; of the function itself if a notebook defines it.

    Raises ConfigError if there is no such file or module.
    """
    main = sys.modules.get(MAIN)
    if reference.startswith(f"{MAIN}:") and not getattr(main, "__file__", None):
        try:
            source = inspect.getsource(load(flag, reference)).encode()
        except OSError as error:
            raise ConfigError(f"--{flag}={reference}: its source cannot be found; must be in a file") from error
    else:
        source = source_file(flag, reference).read_bytes()
    return hashlib.sha256(source).hexdigest()


def _module(flag: str, reference: str, place: str) -> ModuleType:
    if not place.endswith(".py"):
        if place not in sys.modules:
            source_file(flag, reference)  # names a missing module
        return importlib.import_module(place)
    file = source_file(flag, reference)
    # One module per content, in sys.modules, so that Keras finds its classes when it copies a model for export.
    content = hashlib.sha256(file.read_bytes() + str(file.absolute()).encode()).hexdigest()
    name = f"petseg_code_{file.stem}_{content[:12]}"
    if name in sys.modules:
        return sys.modules[name]
    loader = _SourceLoader(name, str(file))
    spec = importlib.util.spec_from_file_location(name, file, loader=loader)
    assert spec is not None
    module = sys.modules[name] = importlib.util.module_from_spec(spec)
    try:
        loader.exec_module(module)
    except BaseException:
        del sys.modules[name]
        raise
    return module
