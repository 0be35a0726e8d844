"""libbpf and the bpf(2) system call from Python: the only package that knows the C extension.

Nothing here has policy: functions take descriptors and buffers, and raise typed errors.
"""
