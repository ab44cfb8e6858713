"""The ``deepcluster`` command, and ``python -m deepcluster``."""

import os


def main() -> None:
    """Run the command line.

    Threads that wait sleep here instead of spinning, which torch's OpenMP reads when it is loaded:
    two that spin on a core that another program uses too make a step fifty times as slow.
    """
    os.environ.setdefault("OMP_WAIT_POLICY", "passive")
    from deepcluster.cli import main as commands  # loads torch

    commands()


if __name__ == "__main__":
    main()
