"""Size, accuracy, latency and energy of a model's variants side by side: as table, JSON, plots and one HTML page."""

from tfcompress.report.environment import environment
from tfcompress.report.layers import layers
from tfcompress.report.report import SCHEMA_FILE, Report
from tfcompress.report.rows import Energy, Latency, Layer, Modelled, Row, Verification

__all__ = [
    "SCHEMA_FILE",
    "Energy",
    "Latency",
    "Layer",
    "Modelled",
    "Report",
    "Row",
    "Verification",
    "environment",
    "layers",
]
