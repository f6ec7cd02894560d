"""Write docs/cli.md: every command and option, from the commands themselves.

python tools/cli_page.py            # tests/test_pages.py holds the page against this
"""

from __future__ import annotations

import html
from pathlib import Path

import typer
from typer.cli import get_docs_for_click

from specgen.cli.app import app

PAGE = Path(__file__).parents[1] / "docs" / "cli.md"


def page() -> str:
    """The page as Typer's own generator writes it, with plain quotes."""
    command = typer.main.get_command(app)
    made = get_docs_for_click(obj=command, ctx=typer.Context(command), name="specgen")
    return html.unescape(made).strip() + "\n"


if __name__ == "__main__":
    PAGE.write_text(page(), encoding="utf-8")
