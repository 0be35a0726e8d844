"""What is wanted, into the kernel, and kept there.

``reconciler``: the loop. ``ledger``: what is wanted, and what still has to be done for it. ``status``: how
far each object is. ``metrics``: how long it takes. ``feed``: desired services from a program of one's own.
"""

from k8sdatapath.reconcile.feed import Feed
from k8sdatapath.reconcile.metrics import Histogram, Metrics
from k8sdatapath.reconcile.reconciler import Applied, Reconciler, Retry
from k8sdatapath.reconcile.status import State, Status

__all__ = [
    "Applied",
    "Feed",
    "Histogram",
    "Metrics",
    "Reconciler",
    "Retry",
    "State",
    "Status",
]
