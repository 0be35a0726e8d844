"""Throwaway clusters: nodes, pods and hosts outside, as network namespaces of one machine."""

from k8sdatapath.lab.client import Datagram, Response
from k8sdatapath.lab.host import Host
from k8sdatapath.lab.lab import Lab, LabNode, Pod
from k8sdatapath.lab.leftovers import clean

__all__ = ["Datagram", "Host", "Lab", "LabNode", "Pod", "Response", "clean"]
