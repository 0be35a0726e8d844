"""Flows, told in Hubble's protocol: its command line, relay and user interface are clients of it.

Needs the extra ``hubble``. The schema is our own (``proto/``), with Hubble's names and numbers.
"""

from k8sdatapath.hubble.agent_events import AgentEvents
from k8sdatapath.hubble.peers import PeerNode, Peers
from k8sdatapath.hubble.server import HubbleServer, ServerOptions, TlsFiles

__all__ = ["AgentEvents", "HubbleServer", "PeerNode", "Peers", "ServerOptions", "TlsFiles"]
