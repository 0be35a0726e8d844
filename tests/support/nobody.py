"""Running Python as an unprivileged user."""

from __future__ import annotations

import subprocess
import sys

#: Reading files is the one thing allowed beyond what nobody may, for the checkout may be in root's home.
_AS_NOBODY = (
    "setpriv",
    "--reuid=65534",
    "--regid=65534",
    "--clear-groups",
    "--inh-caps=-all,+dac_read_search",
    "--ambient-caps=-all,+dac_read_search",
    "--bounding-set=-all,+dac_read_search",
)


def as_nobody(code: str) -> subprocess.CompletedProcess[str]:
    """Run Python code as a user without rights."""
    command = [*_AS_NOBODY, sys.executable, "-B", "-W", "ignore", "-c", code]
    return subprocess.run(command, capture_output=True, text=True, check=False)
