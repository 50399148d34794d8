"""Tables: a textbook step becomes numbers. `loop` runs the same step on arrays, as the oracle."""

from .authoring import step as step
from .oracle import loop as loop
from .steps import Step as Step
from .table import Table as Table
from .table import pad as pad
from .table import stack as stack
from .tabulation import tabulate as tabulate
