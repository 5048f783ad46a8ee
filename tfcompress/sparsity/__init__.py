"""Sparsity: networks that are sparse from the start of training on."""

from tfcompress.sparsity.lfsr import LFSR, LFSRMask, handed

__all__ = ["LFSR", "LFSRMask", "handed"]
