"""Search for samplers: grids, schedules and tables that minimise an objective."""

from .align import ays as ays
from .archive import Report as Report
from .baselines import best as best
from .baselines import handmade as handmade
from .distillation import distill as distill
from .distillation import waypoints as waypoints
from .dmn_grid import dmn as dmn
from .error_measures import errors as errors
from .error_measures import ratio as ratio
from .evolution import evolve as evolve
from .evolution import random_search as random_search
from .gits_grid import gits as gits
from .known_schedules import encode as encode
from .known_schedules import known as known
from .learning import begin as begin
from .learning import learn as learn
from .parametrisation import learnable as learnable
from .predictor import s3 as s3
from .schedules import Schedule as Schedule
from .score import each as each
from .score import frechet as frechet
from .score import rmse as rmse
from .several_starts import learn_best as learn_best
from .space import Space as Space
from .transfers import transfer as transfer
from .vary import METHODS as METHODS
