"""Limits within which the pretrained policy was tested beyond its training range, in notebook 7."""

from collections.abc import Mapping

TESTED_LIMITS: Mapping[str, tuple[float, float]] = {
    "urgency": (0.001, 60.0),
    "cv": (0.01, 2.2),
    "kappa": (0.15, 25.0),
    "depth_reversion": (0.15, 25.0),
}
"""By quantity of :class:`flowoe_lib.evaluation.extrapolation.RangeViolation`."""


TESTED_BUCKETS = (13, 78)
