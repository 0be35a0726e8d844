"""The command line, ``k8sdatapath`` or ``kdp``: needs the extra ``cli``."""

from __future__ import annotations

import io
import os
import sys

__all__ = ["main"]


def main() -> None:
    """Run the command line and exit; without its extra, say what to install."""
    # else gRPC tells of each stranger that knocks at a port with TLS
    os.environ.setdefault("GRPC_VERBOSITY", "ERROR")
    try:
        from k8sdatapath.cli.app import app
    except KeyboardInterrupt:
        sys.exit(130)
    except ModuleNotFoundError as error:
        if (error.name or "").split(".")[0] not in {"typer", "rich"}:
            raise
        print("the command line needs an extra: pip install 'k8sdatapath[cli]'", file=sys.stderr)
        sys.exit(2)
    if isinstance(sys.stdout, io.TextIOWrapper):
        sys.stdout.reconfigure(line_buffering=True)  # who follows through a pipe reads each line as it comes
    app(prog_name="k8sdatapath")
