"""``python -m deepcluster``."""

from deepcluster.cli import main

main()
