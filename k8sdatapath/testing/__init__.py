"""For tests of one's own policies, without root or a cluster: see ``docs/how-to/policy.md``.

With pytest, the fixture ``policies_of`` is there as soon as k8sdatapath is installed.
"""

from k8sdatapath.testing.flows import Changed, RecordedFlow, recorded_flows, what_if
from k8sdatapath.testing.policies import Matrix, PolicyWorld

__all__ = ["Changed", "Matrix", "PolicyWorld", "RecordedFlow", "recorded_flows", "what_if"]
