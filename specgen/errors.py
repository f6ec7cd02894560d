"""The one exception that means: the user can mend this."""

import functools
import sys
from collections.abc import Callable, Sequence


class UserError(Exception):
    """A mistake the user can mend: its text is one line saying what, where, and what to do next.

    The command line prints it without a traceback and exits with code 2.
    """


def one_line(error: BaseException) -> str:
    """An error's text as one line of at most 500 characters."""
    return " ".join(str(error).split())[:500] or type(error).__name__


def command(main: Callable[[Sequence[str]], None]) -> Callable[[Sequence[str]], int]:
    """A module's `main` of arguments that returns an exit code: 0, or for a `UserError`, which is
    told on stderr, 2."""

    @functools.wraps(main)
    def told(arguments: Sequence[str]) -> int:
        try:
            main(arguments)
        except UserError as error:
            print(f"error: {error}", file=sys.stderr)
            return 2
        return 0

    return told
