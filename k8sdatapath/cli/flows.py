"""``k8sdatapath flows``: what a server of flows says of itself."""

from __future__ import annotations

import argparse
from typing import Any

import typer

from k8sdatapath.cli.observe import SETTINGS, add_server_flags, observed
from k8sdatapath.cli.output import Output, show, show_value

__all__ = ["app", "status_parser"]

_SECOND = 10**9

app = typer.Typer(no_args_is_help=True, help="Ask about flows; k8sdatapath observe shows them.")


def status_parser() -> argparse.ArgumentParser:
    """What reads the flags of ``status``."""
    parser = argparse.ArgumentParser(
        "k8sdatapath flows status", "%(prog)s [FLAGS]", description=status.__doc__
    )
    parser.add_argument("-o", "--output", choices=("table", "json"), default="table")
    add_server_flags(parser)
    return parser


@app.command(context_settings=SETTINGS)
def status(context: typer.Context) -> None:
    """Show how full the ring of flows is, and how fast it fills. Flags say which server; see --help."""
    given = status_parser().parse_args(context.args)
    with observed(given) as server:
        told: dict[str, Any] = server.status()
    if given.output == "json":
        show_value(told, Output.JSON)
        return
    held, most = told.get("num_flows", 0), told.get("max_flows", 0)
    nodes = told.get("num_connected_nodes")
    row = {
        "flows": f"{held}/{most} ({100 * held / most if most else 0:.1f}%)",
        "seen": told.get("seen_flows", 0),
        "flows/s": f"{told.get('flows_rate', 0.0):.2f}",
        "up": f"{told.get('uptime_ns', 0) // _SECOND} s",
        "nodes": "one" if nodes is None else f"{nodes}, {told.get('num_unavailable_nodes', 0)} unavailable",
        "version": told.get("version", ""),
    }
    show([row], Output.TABLE)
