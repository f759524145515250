"""Surgery: a plan makes the model smaller, in place, and the result is checked."""

from lightpeft.surgery.base import cut_base, kept_channels, kept_rows
from lightpeft.surgery.cut import CutReport, cut, parameter_counts, reapply, reshape
from lightpeft.surgery.fingerprint import (
    PACKED,
    TRAINED,
    base_digests,
    digest_of,
    fingerprint,
    other_tensors,
    shape_and_dtype,
)
from lightpeft.surgery.first_token import (
    FirstToken,
    above_attention,
    can_narrow,
    last_layer,
    narrow,
    narrowed,
    repeats_layer,
)
from lightpeft.surgery.inputs import random_batch
from lightpeft.surgery.operation import require_allowed
from lightpeft.surgery.optimizer import require_followable
from lightpeft.surgery.pairs import fold_beside
from lightpeft.surgery.probe import ProbeReport, probe_cuts, verify_discovered
from lightpeft.surgery.reconstruction import BATCHES
from lightpeft.surgery.record import WHEN_CUT, CutRecord, attach_record, record_of
from lightpeft.surgery.reference import AdaptersOn, StepGuard
from lightpeft.surgery.skipped_layer import SkippedLayer
from lightpeft.surgery.skips import SkippedAttention
from lightpeft.surgery.uniform import without_bias
from lightpeft.surgery.verify import (
    TOLERANCES,
    as_computed,
    evaluating,
    is_of_one_dtype,
    labelled,
    largest_difference,
    modes_kept,
    narrowest_dtype,
    observe,
    padded_batch,
    unpadded,
)

__all__ = [
    "BATCHES",
    "PACKED",
    "TOLERANCES",
    "TRAINED",
    "WHEN_CUT",
    "AdaptersOn",
    "CutRecord",
    "CutReport",
    "FirstToken",
    "ProbeReport",
    "SkippedAttention",
    "SkippedLayer",
    "StepGuard",
    "above_attention",
    "as_computed",
    "attach_record",
    "base_digests",
    "can_narrow",
    "cut",
    "cut_base",
    "digest_of",
    "evaluating",
    "fingerprint",
    "fold_beside",
    "is_of_one_dtype",
    "kept_channels",
    "kept_rows",
    "labelled",
    "largest_difference",
    "last_layer",
    "modes_kept",
    "narrow",
    "narrowed",
    "narrowest_dtype",
    "observe",
    "other_tensors",
    "padded_batch",
    "parameter_counts",
    "probe_cuts",
    "random_batch",
    "reapply",
    "record_of",
    "repeats_layer",
    "require_allowed",
    "require_followable",
    "reshape",
    "shape_and_dtype",
    "unpadded",
    "verify_discovered",
    "without_bias",
]
