"""Functions of yours by name, ``your_package.your_module:function``: run only if you named them, and not a file.

A run's folder says what made its network, and whoever reads the folder makes it again; a folder that somebody else made
could name any function of any module. So while files are read on the command line, a function is imported only if its
name stood on a command line itself: this one, or an earlier one of the same user. Python of yours names what it likes.
"""

import importlib
import importlib.machinery
import importlib.util
import json
import os
import re
import sys
import traceback
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from quantenv.core.errors import QuantenvError
from quantenv.core.files import cache_dir, write_text
from quantenv.core.reading import read_json

#: Set while a command runs, so that its worker processes are as careful.
GUARDED = "QUANTENV_ONLY_NAMED_FUNCTIONS"
_NAME = re.compile(r"[^\W\d]\w*(\.[^\W\d]\w*)*:[^\W\d]\w*(\.[^\W\d]\w*)*")


def own_function(name: str, what: str) -> Callable[..., Any]:
    """Imports a function by name.

    Args:
        name: ``module:function``.
        what: What messages call it, such as ``model``.

    Raises:
        QuantenvError: If it cannot be imported, or is named by a file and was never named on a command line.
    """
    module, _, attribute = name.partition(":")
    if os.environ.get(GUARDED) and _named().get(name) != _origin(module):
        raise QuantenvError(
            f"A file names the {what} {name!r}, a function that was never named on a command line here: files run no "
            f"code. If you trust it, name it once yourself, as in `quantenv {_COMMANDS[what]} {name}`."
        )
    top = module.partition(".")[0]
    if top not in sys.modules and importlib.util.find_spec(top) is None:
        sys.path.append(os.getcwd())  # for good: worker processes get it, and what the function itself imports later
    try:
        function: Any = importlib.import_module(module)
        for part in attribute.split("."):
            function = getattr(function, part)
    except (ImportError, AttributeError) as error:
        raise QuantenvError(
            f"Cannot import {what} {name!r}: {error}. Is it installed, on PYTHONPATH, or in this folder?"
        ) from error
    except QuantenvError:
        raise
    except Exception as error:  # importing runs the user's code, which may fail in any way
        raise QuantenvError(f"Cannot import {what} {name!r}: {reason_of(error)}.") from error
    if not callable(function):
        raise QuantenvError(f"The {what} {name!r} is a {type(function).__name__}; expected a function.")
    return function


def is_function_name(text: str) -> bool:
    """Whether a text has the form ``module:function``."""
    return _NAME.fullmatch(text) is not None


def reason_of(error: BaseException) -> str:
    """Returns what an error of the user's code says, and where in it: ``KeyError: 3 (mine.py, line 12)``."""
    said = (str(error).splitlines() or [""])[0].rstrip(".")[:200]
    frames = traceback.extract_tb(error.__traceback__)
    where = f" ({Path(frames[-1].filename).name}, line {frames[-1].lineno})" if frames else ""
    return f"{type(error).__name__}{': ' * bool(said)}{said}{where}"


#: How a user names one.
_COMMANDS = {"model": "layers --model", "task": "tasks --task"}


@contextmanager
def only_named_functions() -> Iterator[None]:
    """Lets this process and those that it starts import only functions that were named on a command line."""
    before = os.environ.get(GUARDED)
    os.environ[GUARDED] = "1"
    try:
        yield
    finally:
        if before is None:
            del os.environ[GUARDED]
        else:
            os.environ[GUARDED] = before


def name_on_command_line(text: str) -> None:
    """Remembers a function that a command line names; any other text says nothing."""
    if not _NAME.fullmatch(text) or text.startswith("torchvision:"):
        return
    known, origin = _named(), _origin(text.partition(":")[0])
    if known.get(text) == origin:
        return
    try:
        write_text(_file(), json.dumps({**known, text: origin}, indent=1) + "\n")
    except OSError as error:
        raise QuantenvError(
            f"Cannot write {_file()}: {error.strerror}. Set QUANTENV_CACHE to a folder that can be written."
        ) from error


def _file() -> Path:
    return cache_dir() / "functions_named_by_the_user.json"


def _named() -> dict[str, str]:
    """Returns where the module of each named function was found, by the function's name."""
    if not _file().exists():
        return {}
    return read_json(_file(), dict[str, str], what="list of functions that you named")


def _origin(module: str) -> str:
    """Returns where a module's outermost package lies, which finding does not run; empty if it is in no file."""
    top = module.partition(".")[0]
    with suppress(ImportError, ValueError, OSError):
        spec = importlib.util.find_spec(top) or importlib.machinery.PathFinder.find_spec(top, [os.getcwd()])
        if spec is not None:
            return next(filter(None, [spec.origin, *(spec.submodule_search_locations or ())]), "")
    return ""
