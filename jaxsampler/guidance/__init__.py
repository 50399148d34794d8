"""Guidance: wrappers of a denoiser that predict something else at (x, t). They nest."""

from .classifier_free_guidance import classifier_free as classifier_free
from .threshold import dynamic_threshold as dynamic_threshold
