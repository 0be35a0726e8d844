"""The agent: a node's datapath kept as a Kubernetes cluster has it. Composed of public API only.

``config``: what it is told, in the words of ``options``. ``log``: how it tells. ``web``: health and metrics.
"""
