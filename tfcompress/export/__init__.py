"""Keras models as .tflite files, each verified against the model it came from (needs the extra `export`)."""

from tfcompress.export.convert import convert, tflite
from tfcompress.export.inspect import FileInfo, inspect
from tfcompress.export.reports import ExportReport, VerifyReport
from tfcompress.export.runner import Runner
from tfcompress.export.sparse_rules import SparseRules, sparse_inference
from tfcompress.export.targets import MEANING, PRECISIONS, TARGETS
from tfcompress.export.verify import verify
from tfcompress.export.worker import Worker, WorkerCrash, WorkerError, WorkerTimeout

__all__ = [
    "MEANING",
    "PRECISIONS",
    "TARGETS",
    "ExportReport",
    "FileInfo",
    "Runner",
    "SparseRules",
    "VerifyReport",
    "Worker",
    "WorkerCrash",
    "WorkerError",
    "WorkerTimeout",
    "convert",
    "inspect",
    "sparse_inference",
    "tflite",
    "verify",
]
