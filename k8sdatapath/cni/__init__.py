"""A chained CNI plugin: the container runtime says which device is whose, so nobody needs to find out.

``k8sdatapath-cni`` (:mod:`~k8sdatapath.cni.plugin`) is what the runtime runs, after the plugin that has made
the pod's devices. It passes on what it is told to :class:`~k8sdatapath.cni.server.CniServer`, in the agent
that owns the node's datapath, and ends.
"""
