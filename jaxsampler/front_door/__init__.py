"""The front door: what a user says becomes a start, a table and a run."""

from .sampling import sample as sample
