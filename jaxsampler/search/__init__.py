"""Searching for samplers: grids, schedules and tables, found by an objective."""

from .align import ays as ays
from .archive import Report as Report
from .distill import distill as distill
from .distill import waypoints as waypoints
from .dmn import dmn as dmn
from .errors import errors as errors
from .errors import ratio as ratio
from .evolve import evolve as evolve
from .evolve import random_search as random_search
from .gits import gits as gits
from .handmade import best as best
from .handmade import handmade as handmade
from .known import encode as encode
from .known import known as known
from .learn import begin as begin
from .learn import learn as learn
from .learn import learn_best as learn_best
from .learnable import learnable as learnable
from .predictor import s3 as s3
from .schedules import Schedule as Schedule
from .score import each as each
from .score import frechet as frechet
from .score import rmse as rmse
from .space import Space as Space
from .transfer import transfer as transfer
from .vary import METHODS as METHODS
