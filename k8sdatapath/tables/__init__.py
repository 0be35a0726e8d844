"""The meaning of each map: its struct twins, and who may have which row.

Structs here mirror ``bpf/include/kd/types.h``; binding compares them with the compiled object's BTF.
"""
