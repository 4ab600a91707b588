"""Help, error messages and exit codes of all commands.

Exit codes: 0 success; 1 the run failed; 2 invalid input, the message says what to fix; 75 time
limit reached, the run can be continued; 128 + n ended by signal n (130: Ctrl-C).
"""

from __future__ import annotations

import signal
import sys
import textwrap
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager, suppress
from io import TextIOWrapper
from typing import Any

from pydantic import BaseModel
from pydantic.fields import FieldInfo
from rich.console import Console
from rich.text import Text

from raymi.errors import StorageError, UserError, is_fault_of_storage, storage_remedy
from raymi.formatting import message_text, shown
from raymi.overrides import default_text, expected, leaves
from raymi.signals import Stopped, exit_without_cleanup
from raymi.terminal.console import Terminal
from raymi.terminal.print_line import print_lines

EXIT_FAILED, EXIT_USER, EXIT_TIME_LIMIT = 1, 2, 75


def run_command(body: Callable[[list[str]], int], argv: Sequence[str] | None = None) -> int:
    """Runs a command; turns errors into one message and an exit code.

    Args:
        body: command, called with the words of the command line.
        argv: words; None: the command line of this process.
    """
    words = list(sys.argv[1:] if argv is None else argv)
    with _printable_streams(), _short_warnings():
        code = _exit_code(body, words)
        exit_without_cleanup(code)
        return code


def _exit_code(body: Callable[[list[str]], int], words: list[str]) -> int:
    try:
        _refuse_bytes(words)
        return body(words)
    except UserError as error:
        _print_error(str(error), words)
        return EXIT_USER
    except (FloatingPointError, StorageError) as error:
        _print_error(str(error), words)
        return EXIT_FAILED
    except OSError as error:
        if not is_fault_of_storage(error):
            raise
        path, reason = error.filename or "a file", error.strerror or error
        remedy = storage_remedy(error)
        verb = "write" if remedy.startswith("free space") else "read or write"
        _print_error(f"cannot {verb} {path} ({reason}): {remedy}", words)
        return EXIT_FAILED
    except Stopped as stop:
        Terminal(stderr=True).print(f"stopped by {stop.name}")
        return stop.exit_code
    except KeyboardInterrupt:
        Terminal(stderr=True).print("interrupted")
        return 128 + signal.SIGINT


def _print_error(message: str, words: Sequence[str]) -> None:
    """Prints a message to stderr; shortens long values of the command line in it."""
    text = textwrap.indent(message_text(message, tuple(words)), " " * len("error: ")).lstrip()
    errors = Terminal(stderr=True, soft_wrap=True)
    errors.print(Text.assemble(("error: ", "bold red"), text))


def _refuse_bytes(words: Sequence[str]) -> None:
    """Refuses words that are not UTF-8, which neither JSON nor MLflow can store.

    Raises:
        UserError: a word is not UTF-8.
    """
    for word in words:
        if any("\ud800" <= letter <= "\udfff" or letter == "\0" for letter in word):
            raise UserError(
                f"expected text in UTF-8, got {shown(word)}: write it in UTF-8, or rename the file"
            )


@contextmanager
def _short_warnings() -> Iterator[None]:
    """Prints warnings as one line, without the line of code that issued them."""
    usual = warnings.formatwarning

    def text(message: Warning | str, category: type[Warning], *place: Any, **more: Any) -> str:
        if category is UserWarning:
            return f"warning: {message_text(str(message))}\n"
        return usual(message, category, *place, **more)

    warnings.formatwarning = text
    try:
        yield
    finally:
        warnings.formatwarning = usual


@contextmanager
def _printable_streams() -> Iterator[None]:
    """Makes stdout and stderr escape letters that their encoding lacks."""
    with ExitStack() as stack:
        for stream in (sys.stdout, sys.stderr):
            if isinstance(stream, TextIOWrapper) and stream.errors == "strict":
                stream.reconfigure(errors="backslashreplace")
                stack.callback(_reset_errors, stream)
        yield


def _reset_errors(stream: TextIOWrapper) -> None:
    with suppress(ValueError):  # closed meanwhile
        stream.reconfigure(errors="strict")


def wants_help(words: Sequence[str]) -> bool:
    """Returns whether a command line has --help or -h."""
    return bool({"--help", "-h"} & set(words))


def print_help(
    console: Console,
    usage: str,
    doc: str | None,
    named: Mapping[str, Mapping[str, str]],
    takes: Callable[[str], bool] = lambda key: True,
    options: type[BaseModel] | None = None,
) -> None:
    """Prints the help of a command: usage, description, names, options and keys.

    Lines are wrapped on a terminal only.

    Args:
        console: where it is printed.
        usage: usage line.
        doc: docstring of the command's module; its text after the first colon is the description.
        named: names with a description each (recipes, data sets), by heading.
        takes: whether the command accepts a key of `Config`.
        options: section of the command's options, which are no keys of `Config`.
    """
    description = (doc or "").partition(": ")[2].strip()
    description = description[:1].upper() + description[1:]

    def show(text: str, indent: int = 0, style: str = "") -> None:
        if console.is_terminal:
            hanging = " " * indent
            text = textwrap.fill(
                text, console.width, subsequent_indent=hanging, break_on_hyphens=False
            )
        print_lines(console, text, style)

    def show_keys(heading: str, fields: Sequence[tuple[str, FieldInfo]]) -> None:
        if not fields:
            return
        console.print()
        show(heading, style="bold")
        for key, field in fields:
            show(f"  {key}={default_text(field)}  ({expected(field)})", indent=6, style="cyan")
            show(" " * 6 + " ".join((field.description or "").split()), indent=6)

    show(f"usage: {usage}", indent=7)
    for paragraph in description.split("\n\n"):
        console.print()
        show(" ".join(paragraph.split()))
    for heading, entries in named.items():
        console.print()
        show(heading, style="bold")
        width = max(map(len, entries))
        for name, text in entries.items():
            show(f"  {name:<{width}}  {text}", indent=width + 4)
    show_keys("options of this command, set as option=value", [*leaves(options)] if options else [])
    show_keys(
        "keys, set as key=value; a unique last part is enough (lr=1e-3, eps=8/255)",
        [(key, field) for key, field in leaves() if takes(key)],
    )
