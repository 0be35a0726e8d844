"""Typed programs, a class per kind; each ``attach`` has the arguments of its own hook and returns a link."""

from k8sdatapath.programs.base import Program, RunResult
from k8sdatapath.programs.cgroup import CgroupSkb, CgroupSockAddr
from k8sdatapath.programs.iter import Iter
from k8sdatapath.programs.netfilter import Netfilter
from k8sdatapath.programs.sk_lookup import SkLookup
from k8sdatapath.programs.sk_msg import SkMsg
from k8sdatapath.programs.sk_skb import SkSkb
from k8sdatapath.programs.sock_ops import SockOps
from k8sdatapath.programs.tc import TC, Direction, TcAction
from k8sdatapath.programs.xdp import XDP, XdpAction, XdpMode

__all__ = [
    "TC",
    "XDP",
    "CgroupSkb",
    "CgroupSockAddr",
    "Direction",
    "Iter",
    "Netfilter",
    "Program",
    "RunResult",
    "SkLookup",
    "SkMsg",
    "SkSkb",
    "SockOps",
    "TcAction",
    "XdpAction",
    "XdpMode",
]
