"""``k8sdatapath lab``: throwaway clusters of network namespaces."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from k8sdatapath.cli.output import Output, OutputOption, show

__all__ = ["app"]

app = typer.Typer(no_args_is_help=True, help="Throwaway clusters of network namespaces, on this machine.")


@app.command()
def demo(
    manifests: Annotated[
        Path | None,
        typer.Option(metavar="DIR", exists=True, file_okay=False, help="Instead of the project's examples."),
    ] = None,
    seconds: Annotated[float, typer.Option(min=1, help="How long clients send requests.")] = 10,
    output: OutputOption = Output.TABLE,
) -> None:
    """Balance the services of manifests over pods, and let a pod leave under load."""
    from k8sdatapath.cli import demo

    if not demo.run(manifests or demo.manifests_directory(), seconds, output):
        raise typer.Exit(1)


@app.command()
def clean(output: OutputOption = Output.TABLE) -> None:
    """Remove what labs of dead processes have left behind."""
    from k8sdatapath.lab import clean

    show([{"removed": what} for what in clean()], output)
