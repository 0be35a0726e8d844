"""The commands, and how they end.

Exit codes: 0 done; 1 it failed, or what was asked about is not well; 2 the command line was wrong;
130 stopped with Ctrl-C.
"""

from __future__ import annotations

import os
from typing import Annotated, Any

import typer
from typer.core import TyperGroup

from k8sdatapath.cli import (
    accel,
    agent,
    apply,
    ct,
    explain,
    flows,
    identity,
    ipcache,
    l7,
    lab,
    nat,
    observe,
    policy,
    services,
    top,
)
from k8sdatapath.cli.output import Output, OutputOption, console, show
from k8sdatapath.errors import DatapathError

__all__ = ["app"]


class Group(TyperGroup):
    """Ends a command that raised an error of the library with one line, not a traceback."""

    def invoke(self, ctx: Any) -> Any:
        """Run the command."""
        try:
            return super().invoke(ctx)
        except (DatapathError, OSError) as error:
            if ctx.params.get("debug") or isinstance(error, BrokenPipeError):
                raise
            console(stderr=True).print(f"error: {_told(error)}", style="red", markup=False)
            raise typer.Exit(1) from error
        except KeyboardInterrupt:
            raise typer.Exit(130) from None


def _told(error: DatapathError | OSError) -> str:
    """An error of the machine as the library tells those of its own: what it is about, then the reason."""
    if isinstance(error, DatapathError) or not error.filename or not error.strerror:
        return str(error)
    return f"{os.fsdecode(error.filename)}: {error.strerror}"


app = typer.Typer(
    cls=Group,
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    help="Kubernetes datapaths in eBPF.",
    epilog="Exit codes: 0 done, 1 failed or not well, 2 wrong command line, 130 stopped with Ctrl-C.",
)


app.command()(agent.agent)
app.command()(apply.apply)
app.command()(explain.explain)
app.command(context_settings=observe.SETTINGS)(observe.observe)
app.command(context_settings=observe.SETTINGS)(top.top)
app.add_typer(flows.app, name="flows")
app.add_typer(services.app, name="services")
app.add_typer(ct.app, name="ct")
app.add_typer(nat.app, name="nat")
app.add_typer(accel.app, name="accel")
app.add_typer(policy.app, name="policy")
app.add_typer(identity.app, name="identity")
app.add_typer(ipcache.app, name="ipcache")
app.add_typer(l7.app, name="l7")
app.add_typer(lab.app, name="lab")


def version(wanted: bool) -> None:
    """Print the version and exit."""
    if wanted:
        import k8sdatapath

        print(f"k8sdatapath {k8sdatapath.__version__}")
        raise typer.Exit


@app.callback()
def options(
    debug: Annotated[bool, typer.Option("--debug", help="Show tracebacks of errors.")] = False,
    version: Annotated[
        bool, typer.Option("--version", callback=version, is_eager=True, help="Print the version.")
    ] = False,
) -> None:
    """Kubernetes datapaths in eBPF."""


@app.command()
def doctor(output: OutputOption = Output.TABLE) -> None:
    """Tell what this machine offers, and what to do where it falls short."""
    from k8sdatapath.cli import doctor

    if not doctor.run(output):
        raise typer.Exit(1)


@app.command()
def features(output: OutputOption = Output.TABLE) -> None:
    """List what this kernel can do, each found out by a trial."""
    from k8sdatapath.features import probe_all

    rows = [
        {
            "feature": support.feature.name,
            "supported": "yes" if support.supported else "no",
            "since": support.feature.min_kernel,
            "used_for": support.feature.used_for,
            "answer": support.detail,
        }
        for support in probe_all()
    ]
    show(rows, output)
