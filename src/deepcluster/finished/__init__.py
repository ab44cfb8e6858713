"""What is done with a finished run? A file for each thing, the face of all here."""

from deepcluster.finished.evaluate import evaluate_run
from deepcluster.finished.export import export_run
from deepcluster.finished.label import suggest_run, teach_run
from deepcluster.finished.parts import Shard, embed_part, join_parts
from deepcluster.finished.predict import (
    Classes,
    Predictions,
    check_embeddings_out,
    check_risk,
    classify,
    predict_source,
    sort_into,
    write_embeddings,
)
from deepcluster.finished.recluster import recluster_run
from deepcluster.finished.sorting import LOG, check_folder
from deepcluster.finished.update import update_run

__all__ = [
    "LOG",
    "Classes",
    "Predictions",
    "Shard",
    "check_embeddings_out",
    "check_folder",
    "check_risk",
    "classify",
    "embed_part",
    "evaluate_run",
    "export_run",
    "join_parts",
    "predict_source",
    "recluster_run",
    "sort_into",
    "suggest_run",
    "teach_run",
    "update_run",
    "write_embeddings",
]
