"""The application: its commands, and what every error becomes."""

import os
import sys
import traceback
from typing import Annotated, Any

import typer

from specgen import __version__
from specgen.cli import bench, compare, convert, generate, merge, presets, train, verify
from specgen.cli import report as report_page
from specgen.errors import UserError

# typer carries its own copy of click in some versions; its base error is found through its heirs.
UsageError: Any = next(c for c in typer.BadParameter.__mro__ if c.__name__ == "ClickException")

app = typer.Typer(
    name="specgen",
    help="Make music from text, faster than the model alone and with the very same notes.",
    epilog="Any command takes --debug, which shows the traceback of an error.",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)
app.command("generate")(generate.generate)
app.command("merge")(merge.merge)
app.command("bench")(bench.bench)
app.command("compare")(compare.compare)
app.command("report")(report_page.report)
app.command("verify")(verify.verify)
app.command("convert")(convert.convert)
app.command("train")(train.train)
app.add_typer(presets.app, name="presets")


def _version(wanted: bool) -> None:
    if wanted:
        typer.echo(f"specgen {__version__}")
        raise typer.Exit


@app.callback()
def _options(
    version: Annotated[
        bool, typer.Option("--version", callback=_version, is_eager=True, help="Print the version.")
    ] = False,
) -> None:
    pass


def run(arguments: list[str]) -> int:
    """Run a command line; returns its exit code.

    0 all done; 1 some clips failed, or a fault of the program; 2 something the user can mend, one
    line on stderr; 130 interrupted.
    """
    debug = "--debug" in arguments
    arguments = [a for a in arguments if a != "--debug"]
    try:
        code = typer.main.get_command(app).main(arguments, "specgen", standalone_mode=False)
        return code if isinstance(code, int) else 0
    except (KeyboardInterrupt, typer.Abort):
        print("specgen: interrupted; finished clips are kept", file=sys.stderr)
        return 130
    except BrokenPipeError:
        return 1
    except (UserError, UsageError) as error:
        if debug:
            traceback.print_exception(error)
        message = str(error)
        if isinstance(error, UsageError):
            if type(error).__name__ == "NoArgsIsHelpError":  # its help has been printed
                return 2
            # click's own text names the option; `str` does not
            context = getattr(error, "ctx", None)
            path = "specgen" if context is None else context.command_path
            message = f"{error.format_message().rstrip('.')}. See {path} --help."
    except Exception as error:  # a fault of ours
        if debug:
            traceback.print_exception(error)
        what = " ".join(f"{type(error).__name__}: {error}".split())
        hint = "add --debug for the traceback, and report it"
        print(f"specgen: internal error: {what}; {hint}", file=sys.stderr)
        return 1
    print(f"specgen: error: {' '.join(message.split())}", file=sys.stderr)
    return 2


def main() -> None:
    """The `specgen` command."""
    # Weights and caches on huge pages, where Linux lends them to those who ask (mostly): a step of
    # a large model reads all of them. torch looks when it first takes memory.
    os.environ.setdefault("THP_MEM_ALLOC_ENABLE", "1")
    code = run(sys.argv[1:])
    try:
        sys.stdout.flush()
    except BrokenPipeError:
        code = 1
    sys.exit(code)


if __name__ == "__main__":
    main()
