"""Coming from other toolkits with a model that is already compressed."""

from tfcompress.migrate.tfmot import from_tfmot

__all__ = ["from_tfmot"]
