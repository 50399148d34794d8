r"""A solver is one textbook step and the rules for the ends of the grid.

The author of a solver writes the update as in the paper:

    @step(kind="data", order=2, past=1, start=(dpmpp_1,), to_zero=dpmpp_1)
    def dpmpp_2m(path, ts, x, past, model, z):
        ...
        return the state at ts[-1]

    path    the schedule (alpha, sigma, lam, time, ...)         ts     grid times so far: ts[-2] is now, ts[-1] is next
    x       the (centred) state at ts[-2]                       past   model outputs of earlier intervals, newest first
    model   (x, t) -> prediction of the declared kind           z      standard normal draw; a tuple if `noises` > 1

A step that reads earlier states too (`states`) finds them in `past.x`, newest first; a step that corrects the state it was given, once it
has the output there, returns (next, corrected), and later steps read the corrected one (`past.inputs` has those that the outputs
were made at). The result must be linear in x, past, z and the model's outputs: then the same code is the plain loop on arrays (the oracle)
and, on unit vectors, the coefficient table. Branch on step indices or options only, never on array values. Keyword-only arguments are
the options of the solver: `dpmpp_2m(form="taylor")` is another step.
"""

import dataclasses
import difflib
import inspect
from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from ..numerics import is_traced
from ..paths.base import KINDS


@dataclasses.dataclass(frozen=True)
class Step:
    """A textbook step with its rules. Call it with options to get a variant; `formula` is the update itself.

    kind: prediction that `model` returns inside the formula, a name or a function (path, t) -> (a, b) of the linear form. order: of
    accuracy (weak order if stochastic). past: number of earlier outputs it reads (the first call of each earlier interval). states:
    number of earlier states it reads. inputs: number of past outputs of which it also reads the state they were made at. assumed: for
    the first interval only, (path, t, kind) -> c: the output is taken to be c x, in any kind, and costs no call. noises: draws per step,
    entering at its last updates in order; with `churn` the first one enters before the first call (saved states and hooks then see the
    state after it). start: the steps of the first intervals, lowest order first (they serve `lower_order_final` too). to_zero: the step
    into sigma = 0. from_noise: the step out of alpha = 0. rule: (n, lower_order_final) -> the steps of n intervals, where orders 1, 2,
    .. at the start won't do.
    """

    formula: Callable
    name: str
    kind: str | Callable
    order: int
    past: int = 0
    states: int = 0
    inputs: int = 0
    assumed: "Callable | None" = None
    noises: int = 0
    churn: bool = False
    start: tuple["Step", ...] = ()
    to_zero: "Step | None" = None
    from_noise: "Step | None" = None
    rule: "Callable[[int, bool], Sequence[Step]] | None" = None
    lower_order_final: bool = False
    reference: str = ""
    doc: str = dataclasses.field(default="", compare=False, repr=False)
    make: Callable | None = dataclasses.field(default=None, compare=False, repr=False)
    given: tuple = dataclasses.field(
        default=(), compare=False, repr=False
    )  # values of options, for `tabulate` to see traced ones

    def __post_init__(self):
        object.__setattr__(
            self, "__doc__", self.doc
        )  # so that help() and ? show what the solver's author wrote
        if not callable(self.kind) and self.kind not in KINDS:
            raise ValueError(f"unknown prediction kind {self.kind!r}; valid: {', '.join(KINDS)}")
        if self.start and len(self.start) < self.past:
            raise ValueError(f"{self.name} reads {self.past} past outputs: it needs as many start steps")
        if self.assumed is not None and self.noises:
            raise ValueError(f"{self.name} assumes its output, so it makes no call: it cannot draw noise")

    @property
    def stochastic(self) -> bool:
        """Whether it draws noise."""
        return self.noises > 0

    def __call__(self, **options: Any) -> "Step":
        """The same solver with other options."""
        final = options.pop("lower_order_final", self.lower_order_final)
        options = {name: _default_float(value) for name, value in options.items()}
        made = self._bind(options) if self.make is None else self.make(**options) if options else self
        return dataclasses.replace(made, lower_order_final=final, given=(*self.given, *options.values()))

    @property
    def family(self) -> "tuple[Step, ...]":
        """Its orders, lowest first."""
        return (*self.start, self)

    def _bind(self, options: dict) -> "Step":
        unknown(options, self.options(), self.name)
        if not options:
            return self

        def formula(*args, _formula=self.formula, **kwargs):
            return _formula(*args, **{**options, **kwargs})

        def sub(step):  # the lower orders follow the options that they know
            return (
                None
                if step is None
                else step._bind({k: v for k, v in options.items() if k in step.options()})
            )

        formula.__signature__ = inspect.signature(self.formula)
        return dataclasses.replace(
            self,
            formula=formula,
            start=tuple(map(sub, self.start)),
            to_zero=sub(self.to_zero),
            from_noise=sub(self.from_noise),
        )

    def replace(self, **changes: Any) -> "Step":
        """A copy with other rules."""
        return dataclasses.replace(self, **changes)

    def options(self) -> list[str]:
        """Names of its options."""
        parameters = inspect.signature(self.formula if self.make is None else self.make).parameters.values()
        return [p.name for p in parameters if self.make is not None or p.kind is p.KEYWORD_ONLY]


class Past(tuple):
    """Model outputs of earlier intervals, newest first; `x`: the states at the starts of these intervals, `inputs`: before correction."""

    x: tuple
    inputs: tuple

    def __new__(cls, outputs: Any, states: Any = (), inputs: Any = ()):
        made = super().__new__(cls, outputs)
        made.x, made.inputs = tuple(states), tuple(inputs)
        return made


def _default_float(value: Any) -> Any:
    """A jax array of floats as numpy float64, like all concrete coefficients; a traced one in JAX's default precision."""
    if isinstance(value, jax.Array) and jnp.issubdtype(value.dtype, jnp.floating):
        return value.astype(jnp.result_type(float)) if is_traced(value) else np.asarray(value, np.float64)
    return value


def unknown(given: Any, valid: Sequence[str], what: str) -> None:
    """TypeError naming the nearest valid option if one of `given` is not in `valid`."""
    for name in given:
        if name not in valid:
            near = difflib.get_close_matches(name, [*valid, "lower_order_final"], 1)
            hint = (
                f"did you mean {near[0]!r}?" if near else f"valid: {', '.join([*valid, 'lower_order_final'])}"
            )
            raise TypeError(f"{what} has no option {name!r}; {hint}")


def step(**rules: Any) -> Callable[[Callable], Step]:
    """Decorator: a textbook update with its rules (the fields of `Step`) becomes a solver named after the function."""

    def wrap(formula: Callable) -> Step:
        doc = inspect.getdoc(formula) or ""
        return Step(formula, formula.__name__, reference=_reference(formula), doc=doc, **rules)

    return wrap


def variants(build: Callable[..., Step]) -> Step:
    """Decorator: `build(**options) -> Step`, all options with defaults, becomes the default step, callable for the others."""

    def variant(chosen: dict[str, Any]) -> Step:
        def make(**options: Any) -> Step:  # options add up: mr_ode(order=3)(kind="noise") is of order 3
            unknown(options, list(inspect.signature(build).parameters), build.__name__)
            return variant(chosen | options)

        make.__signature__ = inspect.signature(build)
        named = {"name": build.__name__, "reference": _reference(build), "doc": inspect.getdoc(build) or ""}
        return dataclasses.replace(build(**chosen), make=make, **named)

    return variant({})


def ramp(name: str, formula: Callable, order: int, *, highest: int = 4, **rules: Any) -> Step:
    """A multistep solver that starts itself: orders 1 .. `order` of one formula, which uses as many past outputs as it is given."""
    if order not in range(1, highest + 1):
        raise ValueError(f"{name} has orders 1 to {highest}, got {order!r}")
    steps: list[Step] = []
    for p in range(1, order + 1):
        steps.append(Step(formula, name, order=p, past=p - 1, start=tuple(steps), **rules))
    return steps[-1]


def _reference(function: Callable) -> str:
    """The paper that the docstring cites in [brackets]."""
    doc = " ".join((function.__doc__ or "").split())
    return doc[doc.find("[") + 1 : doc.find("]")] if "[" in doc else ""


def schedule(solver: Any, n: int, *, to_zero: bool, from_noise: bool) -> list[Step]:
    """One step per interval: a step's rules spelled out, or a list of steps taken literally."""
    if isinstance(solver, Step):
        family = solver.family
        if solver.rule is not None:
            steps = list(solver.rule(n, solver.lower_order_final))
        else:
            lowered = [n - i if solver.lower_order_final else n for i in range(n)]
            steps = [family[min(i + 1, lowered[i], len(family)) - 1] for i in range(n)]
        if from_noise and steps[0].from_noise is not None:
            steps[0] = steps[0].from_noise
        if to_zero and steps[-1].to_zero is not None:
            steps[-1] = steps[-1].to_zero
    elif isinstance(solver, list | tuple) and all(isinstance(s, Step) for s in solver):
        steps = list(solver)
        if len(steps) != n:
            raise ValueError(f"a schedule needs one step per interval: {len(steps)} steps for {n} intervals")
    else:
        raise TypeError(
            f"solver must be a step, a list of steps or a js.Solver, got {solver!r}; see js.solvers.by_name"
        )
    for i, s in enumerate(steps):
        if max(s.past, s.states, s.inputs) > i:
            what = f"{s.past} past outputs" if s.past >= s.states else f"{s.states} past states"
            raise ValueError(
                f"{s.name} at interval {i} reads {what} but only {i} intervals came before; start with lower orders"
            )
        if s.assumed is not None and i > 0:
            raise ValueError(f"{s.name} at interval {i} assumes its output: only the first interval may")
    return steps
