"""The one exception that means: the user can mend this."""


class UserError(Exception):
    """A mistake the user can mend: its text is one line saying what, where, and what to do next.

    The command line prints it without a traceback and exits with code 2.
    """


def one_line(error: BaseException) -> str:
    """An error's text as one line of at most 500 characters."""
    return " ".join(str(error).split())[:500] or type(error).__name__
