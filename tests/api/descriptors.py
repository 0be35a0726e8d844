"""Compile Hubble's schema: ``python -m tests.api.descriptors > k8sdatapath/hubble/descriptors.binpb``."""

from __future__ import annotations

import subprocess
import sys
import tempfile
from pathlib import Path

from tests.api.graph import PACKAGE

PROTO = PACKAGE / "hubble" / "proto"


def compiled() -> bytes:
    files = sorted(str(path.relative_to(PROTO)) for path in PROTO.rglob("*.proto"))
    with tempfile.TemporaryDirectory() as directory:
        out = Path(directory) / "out"
        command = [sys.executable, "-m", "grpc_tools.protoc", "-I.", f"--descriptor_set_out={out}", *files]
        subprocess.run(command, check=True, cwd=PROTO)
        return out.read_bytes()


if __name__ == "__main__":
    sys.stdout.buffer.write(compiled())
