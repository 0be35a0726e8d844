"""``python -m k8sdatapath.cni``: the same as ``k8sdatapath-cni``."""

import sys

from k8sdatapath.cni.plugin import main

if __name__ == "__main__":
    sys.exit(main())
