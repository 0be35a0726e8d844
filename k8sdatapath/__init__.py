"""Programmable Kubernetes datapaths in eBPF.

The names below are what most programs need; each is imported when it is first used, so that
``import k8sdatapath`` works anywhere: without root, without the C extension, in no time.

The package is built in layers, and imports go only down them (``tests/api`` holds it to that):

====== ==================================================================== ==========================
layer  modules                                                              knows
====== ==================================================================== ==========================
L6     ``node`` ``agent`` ``lab`` ``cli``                                   everything: the compositions
L5     ``kube`` ``reconcile``                                               Kubernetes, and the model
L4     ``datapath`` ``identity``                                            services; who has which number
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
    from k8sdatapath import features as features
    from k8sdatapath import maps as maps
    from k8sdatapath import programs as programs
    from k8sdatapath.compiler import compile as compile
    from k8sdatapath.compiler import include_dir as include_dir
    from k8sdatapath.datapath.masquerader import Masquerader as Masquerader
    from k8sdatapath.datapath.policy_set import PolicySet as PolicySet
    from k8sdatapath.datapath.service_table import ServiceTable as ServiceTable
    from k8sdatapath.datapath.socket_accelerator import SocketAccelerator as SocketAccelerator
    from k8sdatapath.errors import DatapathError as DatapathError
    from k8sdatapath.kube import KubeWatch as KubeWatch
    from k8sdatapath.kube import NodeView as NodeView
    from k8sdatapath.kube import StaticYaml as StaticYaml
    from k8sdatapath.kube import node_local as node_local
    from k8sdatapath.lab import Lab as Lab
    from k8sdatapath.layout import struct as struct
    from k8sdatapath.links import After as After
    from k8sdatapath.links import Before as Before
    from k8sdatapath.links import First as First
    from k8sdatapath.links import Last as Last
    from k8sdatapath.links import Link as Link
    from k8sdatapath.model import Accelerated as Accelerated
    from k8sdatapath.model import Backend as Backend
    from k8sdatapath.model import BackendState as BackendState
    from k8sdatapath.model import Exposure as Exposure
    from k8sdatapath.model import Frontend as Frontend
    from k8sdatapath.model import FrontendKind as FrontendKind
    from k8sdatapath.model import Masquerade as Masquerade
    from k8sdatapath.model import Protocol as Protocol
    from k8sdatapath.model import Scope as Scope
    from k8sdatapath.model import Selection as Selection
    from k8sdatapath.model import Service as Service
    from k8sdatapath.model.workload import Workload as Workload
    from k8sdatapath.net.netns import NetNs as NetNs
    from k8sdatapath.node import Capacity as Capacity
    from k8sdatapath.node import Node as Node
    from k8sdatapath.node import NodeConfig as NodeConfig
    from k8sdatapath.objects import Object as Object
    from k8sdatapath.objects import ObjectSpec as ObjectSpec
    from k8sdatapath.pins import PinDir as PinDir
    from k8sdatapath.programs import Direction as Direction
    from k8sdatapath.reconcile import Feed as Feed
    from k8sdatapath.reconcile import Reconciler as Reconciler

    __version__: str

#: Public name -> where it is defined; a name that is a module is defined by itself.
_HOMES = {
    "Accelerated": "k8sdatapath.model",
    "After": "k8sdatapath.links",
    "Backend": "k8sdatapath.model",
    "BackendState": "k8sdatapath.model",
    "Before": "k8sdatapath.links",
    "Capacity": "k8sdatapath.node",
    "DatapathError": "k8sdatapath.errors",
    "Direction": "k8sdatapath.programs",
    "Feed": "k8sdatapath.reconcile",
    "First": "k8sdatapath.links",
    "Exposure": "k8sdatapath.model",
    "Frontend": "k8sdatapath.model",
    "FrontendKind": "k8sdatapath.model",
    "KubeWatch": "k8sdatapath.kube",
    "Lab": "k8sdatapath.lab",
    "Last": "k8sdatapath.links",
    "Link": "k8sdatapath.links",
    "Masquerade": "k8sdatapath.model",
    "Masquerader": "k8sdatapath.datapath.masquerader",
    "NetNs": "k8sdatapath.net.netns",
    "Node": "k8sdatapath.node",
    "NodeView": "k8sdatapath.kube",
    "NodeConfig": "k8sdatapath.node",
    "Object": "k8sdatapath.objects",
    "ObjectSpec": "k8sdatapath.objects",
    "PinDir": "k8sdatapath.pins",
    "PolicySet": "k8sdatapath.datapath.policy_set",
    "Protocol": "k8sdatapath.model",
    "Reconciler": "k8sdatapath.reconcile",
    "Scope": "k8sdatapath.model",
    "Selection": "k8sdatapath.model",
    "Service": "k8sdatapath.model",
    "ServiceTable": "k8sdatapath.datapath.service_table",
    "SocketAccelerator": "k8sdatapath.datapath.socket_accelerator",
    "StaticYaml": "k8sdatapath.kube",
    "Workload": "k8sdatapath.model.workload",
    "compile": "k8sdatapath.compiler",
    "errors": "k8sdatapath.errors",
    "features": "k8sdatapath.features",
    "include_dir": "k8sdatapath.compiler",
    "maps": "k8sdatapath.maps",
    "node_local": "k8sdatapath.kube",
    "programs": "k8sdatapath.programs",
    "struct": "k8sdatapath.layout",
}

__all__ = [
    "Accelerated",
    "After",
    "Backend",
    "BackendState",
    "Before",
    "Capacity",
    "DatapathError",
    "Direction",
    "Exposure",
    "Feed",
    "First",
    "Frontend",
    "FrontendKind",
    "KubeWatch",
    "Lab",
    "Last",
    "Link",
    "Masquerade",
    "Masquerader",
    "NetNs",
    "Node",
    "NodeConfig",
    "NodeView",
    "Object",
    "ObjectSpec",
    "PinDir",
    "PolicySet",
    "Protocol",
    "Reconciler",
    "Scope",
    "Selection",
    "Service",
    "ServiceTable",
    "SocketAccelerator",
    "StaticYaml",
    "Workload",
    "errors",
    "features",
    "include_dir",
    "maps",
    "node_local",
    "programs",
    "struct",
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
