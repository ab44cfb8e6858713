"""What a person can mend: each error says what was found, what was expected and what to do next."""

from __future__ import annotations


class ConfigError(ValueError):
    """A setting that does not exist or cannot have this value; says what to type instead."""


class Stopped(KeyboardInterrupt):
    """A fit was interrupted, and has said what is kept and how it goes on."""


class RunError(RuntimeError):
    """The folder is not a run, or not one that can be used so; says what to do."""


class DamagedError(RunError):
    """What is wrong in a file of a run; :func:`deepcluster.files.reading` adds which file it is."""


class ProcessError(RuntimeError):
    """Another process of the same fit has ended, or does not answer."""


class SourceError(ValueError):
    """The source, or its labels, cannot be opened; says what could have been meant."""


class NoImagesError(ValueError):
    """The source has no usable image; says what was found there."""


class UnusableError(ValueError):
    """Why this one image is skipped, in words for a person."""
