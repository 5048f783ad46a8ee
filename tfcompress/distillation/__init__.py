"""Transfer: students that learn from teachers, of any kind and with any other method attached.

`Distillation(teacher, losses)` is a method as all others: `apply` it to a student, `fit`, `finalize`. `cache` computes a
teacher's outputs once. `specialists` and `bias` hold the rest of paper 1: experts for confusable classes, and the
correction of classes that the training data lacked.
"""

from tfcompress.distillation.attach import is_distilled
from tfcompress.distillation.bias import PriorBias, class_bias, oracle_bias, shift_bias
from tfcompress.distillation.caching import Cache, cache
from tfcompress.distillation.distillation import Distillation
from tfcompress.distillation.losses import HardLabels, Logits, SoftTargets, TeacherLoss
from tfcompress.distillation.specialists import (
    SpecialistEnsemble,
    combine,
    confusable_sets,
    dustbin_shift,
    specialist,
    specialist_data,
)
from tfcompress.distillation.teachers import Teachers

__all__ = [
    "Cache",
    "Distillation",
    "HardLabels",
    "Logits",
    "PriorBias",
    "SoftTargets",
    "SpecialistEnsemble",
    "TeacherLoss",
    "Teachers",
    "cache",
    "class_bias",
    "combine",
    "confusable_sets",
    "dustbin_shift",
    "is_distilled",
    "oracle_bias",
    "shift_bias",
    "specialist",
    "specialist_data",
]
