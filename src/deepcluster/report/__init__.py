"""The report: a folder of static pages to look at clusters, name them and mend them.

A pure function of the run folder: it reads through :class:`~deepcluster.run.RunDir`, knows nothing
of training and never imports torch. :func:`write_report` makes the pages, :func:`apply_labels`
takes what a person did in them back into the run.
"""

from deepcluster.report.labels import AppliedLabels, apply_labels
from deepcluster.report.write import write_report

__all__ = ["AppliedLabels", "apply_labels", "write_report"]
