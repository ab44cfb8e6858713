"""The run folder a fit leaves; the only code that knows the names of its files, and that deletes.

``folder.py`` has the folder's names and its life (made, locked, replaced, deleted), ``rundir.py``
the writers and checked readers of its files.
"""

from deepcluster.run.rundir import NEIGHBOURS, Neighbours, RunDir
from deepcluster.run.thumbnails import Thumbnails

__all__ = ["NEIGHBOURS", "Neighbours", "RunDir", "Thumbnails"]
