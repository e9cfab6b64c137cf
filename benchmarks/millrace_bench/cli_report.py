"""`millrace bench report`: stored results as a page of the documentation."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from millrace_schemas import MillraceError

from .cli_throughput import RESULTS

_DOCS = Path("docs")


def report(
    results_dir: Annotated[Path, typer.Option(help="Files of `millrace bench throughput --save`.")] = RESULTS,
    docs: Annotated[Path, typer.Option(help="Gets benchmarks.md and images/throughput.svg.")] = _DOCS,
) -> None:
    """Write all stored results to docs/benchmarks.md, between its markers, and docs/images/throughput.svg."""
    from .report import PICTURE, insert, picture
    from .results import load_all

    page, image = docs / "benchmarks.md", docs / PICTURE
    try:
        if not results_dir.is_dir():
            raise ValueError(f"{results_dir} is no directory; `millrace bench throughput --save` writes there")
        results = load_all(results_dir)
        text = insert(page.read_text() if page.exists() else "", results)
        image.parent.mkdir(parents=True, exist_ok=True)
        page.write_text(text)
        if results:
            image.write_text(picture(results))
    except (MillraceError, ValueError, OSError) as e:
        typer.echo(f"error: {e}", err=True)
        raise typer.Exit(1) from e
    typer.echo(f"{len(results)} files of results: {page}" + (f", {image}" if results else ""))
