"""What all commands share: help, errors without tracebacks, exit codes.

Exit codes: 0 done; 1 the run failed; 2 the user can put it right; 75 ended at its time limit, to be
continued; 128 + n ended by signal n (130: Ctrl-C).
"""

from __future__ import annotations

import errno
import signal
import sys
import textwrap
from collections.abc import Callable, Mapping, Sequence

from rich.console import Console
from rich.text import Text

from raymi.display.say import say
from raymi.errors import StorageError, UserError
from raymi.orchestration.ending import exit_if_asked
from raymi.overrides import default_text, expected, leaves

EXIT_FAILED, EXIT_USER, EXIT_TIME_LIMIT = 1, 2, 75


def run_command(body: Callable[[list[str]], int], argv: Sequence[str] | None = None) -> int:
    """Runs a command and turns what it raises into one message and an exit code.

    Args:
        body: Takes the words of the command line.
        argv: Words; None: those of this process.
    """
    code = _exit_code(body, list(sys.argv[1:] if argv is None else argv))
    exit_if_asked(code)
    return code


def _exit_code(body: Callable[[list[str]], int], words: list[str]) -> int:
    errors = Console(stderr=True, soft_wrap=True, highlight=False)
    try:
        return body(words)
    except UserError as error:
        message = textwrap.indent(str(error), " " * len("error: ")).lstrip()
        errors.print(Text.assemble(("error: ", "bold red"), message))
        return EXIT_USER
    except (FloatingPointError, StorageError) as error:
        errors.print(Text.assemble(("error: ", "bold red"), str(error)))
        return EXIT_FAILED
    except OSError as error:
        if error.errno not in (errno.ENOSPC, errno.EDQUOT):
            raise
        message = f"cannot write {error.filename or 'a file'} ({error.strerror}): free space there"
        errors.print(Text.assemble(("error: ", "bold red"), message))
        return EXIT_FAILED
    except KeyboardInterrupt:
        errors.print("interrupted")
        return 128 + signal.SIGINT


def wants_help(words: Sequence[str]) -> bool:
    """Whether a command line asks for help, whatever else it says."""
    return bool({"--help", "-h"} & set(words))


def print_help(
    console: Console,
    usage: str,
    doc: str | None,
    named: Mapping[str, Mapping[str, str]],
    takes: Callable[[str], bool] = lambda key: True,
) -> None:
    """Prints usage, named things (recipes, data sets, models) and every key with type, default,
    text; wrapped on a terminal only, so that a pipe gets whole lines.

    Args: doc, of the command's module: what follows its first colon describes the command; named,
        from a heading to names with a line of description each; takes, whether the command takes a
        key of `Config`.
    """
    description = (doc or "").partition(": ")[2].strip()
    description = description[:1].upper() + description[1:]

    def show(text: str, indent: int = 0, style: str = "") -> None:
        if console.is_terminal:
            hanging = " " * indent
            text = textwrap.fill(
                text, console.width, subsequent_indent=hanging, break_on_hyphens=False
            )
        say(console, text, style)

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
    keys = [(key, field) for key, field in leaves() if takes(key)]
    if not keys:
        return
    console.print()
    show("keys, set as key=value; a unique last part is enough (lr=1e-3, eps=8/255)", style="bold")
    for key, field in keys:
        show(f"  {key}={default_text(field)}  ({expected(field)})", indent=6, style="cyan")
        show(" " * 6 + " ".join((field.description or "").split()), indent=6)
