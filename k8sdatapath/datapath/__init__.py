"""The high-level objects: desired state in, a plan, the kernel's tables out."""
