"""``python -m k8sdatapath.cli``, where the command is not on the path."""

from k8sdatapath.cli import main

if __name__ == "__main__":
    main()
