"""The agent: a node's datapath kept as a Kubernetes cluster has it. Composed of public API only.

``config``: what it is told, in the words of ``options``, whose values ``values`` reads. ``source``: where
objects come from. ``agent``: the composition. ``health``, ``metrics``, ``web``: how it is. ``process``,
``log``: what makes a process of it. ``cleanup``: takes all of it away.
"""
