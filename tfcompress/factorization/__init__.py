"""Factorization: kernels written as products of smaller ones, and layers split along them."""

from tfcompress.factorization.ranks import EnergyShare, FixedRank, ParameterBudget, RankRule, Spectrum, SumShare
from tfcompress.factorization.svd import SVD, Factors, rerank, truncated_svd

__all__ = [
    "SVD",
    "EnergyShare",
    "Factors",
    "FixedRank",
    "ParameterBudget",
    "RankRule",
    "Spectrum",
    "SumShare",
    "rerank",
    "truncated_svd",
]
