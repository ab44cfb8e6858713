"""The figures of a fit for TensorBoard: scalars an epoch, and a grid for each cluster."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from deepcluster.errors import ConfigError
from deepcluster.progress import Progress
from deepcluster.run import RunDir


class TensorBoard(Progress):
    """Passes on what it is told, and writes it for TensorBoard as well.

    Args:
        progress: told everything.
        folder: of the event files.

    Raises:
        ConfigError: TensorBoard is not installed.
    """

    def __init__(self, progress: Progress, folder: Path) -> None:
        try:
            from torch.utils.tensorboard import SummaryWriter
        except ImportError as error:
            raise ConfigError(
                "--tensorboard needs one more package: pip install 'deepcluster[tensorboard]'"
            ) from error
        self.progress = progress
        self.phase, self.advance = progress.phase, progress.advance  # type: ignore[method-assign]
        self.note = progress.note  # type: ignore[method-assign]
        self.writer = SummaryWriter(folder)

    def epoch(self, line: dict[str, Any]) -> None:
        """Every number of the line, under its name; seconds of each phase under ``seconds/``."""
        seconds = {f"seconds/{name}": value for name, value in line["seconds"].items()}
        for name, value in {**line, **seconds}.items():
            if isinstance(value, int | float) and name != "epoch":
                self.writer.add_scalar(name, value, line["epoch"])
        self.progress.epoch(line)

    def close(self, run: RunDir) -> None:
        """Add the grids of the clusters from the run's pictures, and end the files."""
        for path in sorted(run.pictures.glob("cluster-*.png")):
            with Image.open(path) as image:
                pixels = np.asarray(image.convert("RGB"))
            self.writer.add_image(path.stem, pixels, dataformats="HWC")
        self.writer.close()
