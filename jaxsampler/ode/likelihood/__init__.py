"""Exact log-densities along the probability flow, and bits per dimension of images."""

from .bits import bits_per_dim as bits_per_dim
from .density import log_prob as log_prob
from .density import prior_log_prob as prior_log_prob
