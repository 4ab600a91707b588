"""Error messages and exit codes of all commands.

Exit codes: 0 success; 1 the run failed; 2 invalid input, the message says what to fix; 75 time
limit reached, the run can be continued; 128 + n ended by signal n (130: Ctrl-C).
"""

from __future__ import annotations

import signal
import sys
import textwrap
import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager, suppress
from io import TextIOWrapper
from typing import Any

from rich.text import Text

from raymi.errors import StorageError, UserError, is_fault_of_storage, storage_remedy
from raymi.formatting import message_text, shown
from raymi.signals import Stopped, exit_without_cleanup
from raymi.terminal.console import Terminal

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
