"""Programmable Kubernetes datapaths in eBPF.

The names below are what most programs need; each is imported when it is first used, so that
``import k8sdatapath`` works anywhere: without root, without the C extension, in no time.

The package is built in layers, and imports go only down them (``tests/api`` holds it to that):

====== ==================================================================== ==========================
layer  modules                                                              knows
====== ==================================================================== ==========================
L6     ``node`` ``lab`` ``cli``                                             everything: the compositions
L5     ``kube``                                                             Kubernetes, and the model
L4     ``datapath``                                                         services, from plan to applied
L3     ``tables``                                                           what each map means
L2     ``layout maps programs objects links pins features compiler net``    the kernel, in types
L1     ``pybpf``                                                            libbpf, through the extension
L0     ``model`` ``component`` ``errors``                                   values, protocols, errors
====== ==================================================================== ==========================
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING

if TYPE_CHECKING:  # for type checkers and editors; at run time __getattr__ does the same
    from k8sdatapath import errors as errors
    from k8sdatapath.errors import DatapathError as DatapathError
    from k8sdatapath.model import Backend as Backend
    from k8sdatapath.model import BackendState as BackendState
    from k8sdatapath.model import Frontend as Frontend
    from k8sdatapath.model import Protocol as Protocol
    from k8sdatapath.model import Selection as Selection
    from k8sdatapath.model import Service as Service

    __version__: str

#: Public name -> where it is defined; a name that is a module is defined by itself.
_HOMES = {
    "Backend": "k8sdatapath.model",
    "BackendState": "k8sdatapath.model",
    "DatapathError": "k8sdatapath.errors",
    "Frontend": "k8sdatapath.model",
    "Protocol": "k8sdatapath.model",
    "Selection": "k8sdatapath.model",
    "Service": "k8sdatapath.model",
    "errors": "k8sdatapath.errors",
}

__all__ = [
    "Backend",
    "BackendState",
    "DatapathError",
    "Frontend",
    "Protocol",
    "Selection",
    "Service",
    "errors",
]


def __getattr__(name: str) -> object:
    if name == "__version__":
        value: object = import_module("importlib.metadata").version("k8sdatapath")
    elif name in _HOMES:
        module = import_module(_HOMES[name])
        value = module if module.__name__ == f"k8sdatapath.{name}" else getattr(module, name)
    else:
        raise AttributeError(f"module 'k8sdatapath' has no attribute {name!r}")
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return [*globals(), *_HOMES]
