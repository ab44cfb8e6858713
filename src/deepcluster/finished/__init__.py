"""What is done with a finished run?"""

from deepcluster.finished.predict import *  # noqa: F403
