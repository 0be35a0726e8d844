"""What is wanted, into the kernel, and kept there.

``reconciler``: the loop. ``ledger``: what is wanted, and what still has to be done for it. ``status``: how
far each object is. ``metrics``: how long it takes. ``feed``: desired services from a program of one's own.
``policies``: the loop for policies and who is who. ``numbers``: the numbers of label sets, for it.
``pauses``: how a process that does little else looks for garbage.
"""

from k8sdatapath.reconcile.feed import Feed
from k8sdatapath.reconcile.metrics import Histogram, Metrics
from k8sdatapath.reconcile.pauses import ShortPauses
from k8sdatapath.reconcile.policies import PolicyReconciler
from k8sdatapath.reconcile.reconciler import Applied, Follower, Reconciler, Retry
from k8sdatapath.reconcile.status import State, Status

__all__ = [
    "Applied",
    "Feed",
    "Follower",
    "Histogram",
    "Metrics",
    "PolicyReconciler",
    "Reconciler",
    "Retry",
    "ShortPauses",
    "State",
    "Status",
]
