from typing import Any

# cffi makes both at build time from csrc/cdef/*.h; the wrappers in this package give them types.
ffi: Any
lib: Any
