r"""A solver is one textbook step and the rules for the ends of the grid.

The author of a solver writes the update as in the paper:

    @js.step(kind="data", order=2, past=1, start=(dpmpp_1,), to_zero=dpmpp_1)
    def dpmpp_2m(path, ts, x, past, model, z):
        ...
        return the state at ts[-1]

    path    the schedule (alpha, sigma, lam, time, ...)
    ts      grid times so far: ts[-2] is now, ts[-1] is next
    x       the (centred) state at ts[-2]
    past    model outputs of earlier intervals, newest first; `past.x` and `past.inputs` hold earlier states
    model   (x, t) -> prediction of the declared kind
    z       one standard normal draw; a tuple of them if `noises` > 1

The result must be linear in x, past, z and the model's outputs. Then the same code is the plain loop on
arrays (the oracle) and, on unit vectors, the table of coefficients. Branch on options and on the number of
past outputs only, never on array values. Keyword-only arguments are the options of the solver:
`dpmpp_2m(form="taylor")` is another step.

Most solvers need `kind`, `order`, `past`, `start` and `to_zero` only. The rest, for those that need more:

    (next, corrected)   a step that has its output at `x` may correct `x`: return both, and later steps read
                        the corrected state (solvers/predictor_corrector.py, the corrector of UniPC)
    inputs              read the states that past outputs were made at, `past.inputs`, beside the corrected
                        ones, `past.x`
    churn               the first draw enters before the first call: noise is added, then removed
                        (solvers/edm_heun.py)
    assumed             the output of the first interval is taken to be c x and costs no call
                        (solvers/unified_framework.py)
    rule                the whole schedule of n intervals, where "orders 1, 2, .. at the start" will not do
                        (solvers/predictor_corrector.py, solvers/edm_heun.py)
"""

import dataclasses
import functools
import inspect
import pickle
import sys
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from ..numerics import is_traced
from ..paths import KINDS, VP
from ..spelling import nearest
from .identity import codes, identity
from .units import count_calls


@dataclasses.dataclass(frozen=True, eq=False, repr=False)
class Step:
    """A textbook step with its rules.

    Called with options it gives a variant. Steps made by the same code from equal options are equal and hash
    equal, and a step that can be imported by name pickles.

    Attributes:
        formula: the update itself, (path, ts, x, past, model, z) -> x at ts[-1].
        name: as users spell it.
        kind: prediction that `model` returns inside the formula: a name, or a function (path, t) -> (a, b) of
            the linear form.
        order: of accuracy; the weak order if the step draws noise.
        past: number of earlier outputs that it reads (of the first call of each earlier interval).
        states: number of earlier states that it reads.
        inputs: number of past outputs of which it also reads the state they were made at.
        assumed: for the first interval only, (path, t, kind) -> c: the output is taken to be c x, in any
            kind, without a call.
        noises: draws per step. They enter at its last updates, in order.
        churn: the first draw enters before the first call; saved states and hooks see the state before it.
        start: the steps of the first intervals, lowest order first; they serve `lower_order_final` too.
        to_zero: the step into sigma = 0.
        from_noise: the step out of alpha = 0.
        rule: (n, lower_order_final) -> the steps of n intervals.
        lower_order_final: whether the last intervals take lower orders.
        reference: the publication.
        doc: the docstring of its author.

    Example:
        >>> js.solvers.ddim(eta=0.3) == js.solvers.ddim(eta=0.3)
        True
        >>> js.solvers.dpmpp_2m(form="taylor")
        <dpmpp_2m(form='taylor'): order 2, 1 call a step>
    """

    formula: Callable
    name: str
    kind: str | Callable
    order: int
    past: int = 0
    states: int = 0
    inputs: int = 0
    assumed: Callable | None = None
    noises: int = 0
    churn: bool = False
    start: tuple["Step", ...] = ()
    to_zero: "Step | None" = None
    from_noise: "Step | None" = None
    rule: "Callable[[int, bool], Sequence[Step]] | None" = None
    lower_order_final: bool = False
    reference: str = dataclasses.field(default="", compare=False)
    doc: str = dataclasses.field(default="", compare=False)
    make: Callable | None = dataclasses.field(default=None, compare=False)  # options -> the step with them
    # options chosen, with their values
    given: tuple[tuple[str, Any], ...] = dataclasses.field(default=(), compare=False)
    # (function, arguments) that make it again
    origin: tuple | None = dataclasses.field(default=None, compare=False)

    def __post_init__(self):
        object.__setattr__(self, "__doc__", self.doc)  # help() and ? show what the solver's author wrote
        if not callable(self.kind) and self.kind not in KINDS:
            raise ValueError(f"unknown prediction kind {self.kind!r}; {nearest(str(self.kind), KINDS)}")
        if self.start and len(self.start) < self.past:
            raise ValueError(
                f"{self.name} reads {self.past} past outputs and names {len(self.start)} start steps: "
                f"give start= {self.past} steps, lowest order first"
            )
        if self.assumed is not None and self.noises:
            raise ValueError(
                f"{self.name} assumes its output and makes no call: it cannot draw noise, set noises=0"
            )

    @property
    def stochastic(self) -> bool:
        """Whether it draws noise."""
        return self.noises > 0

    @property
    def calls(self) -> int:
        """Network calls of one full step."""
        n = 9
        return count_calls(self if self.rule is None else self.rule(n, False)[n // 2], VP())

    def __call__(self, **options: Any) -> "Step":
        """The same solver with other options."""
        final = options.pop("lower_order_final", self.lower_order_final)
        options = {name: _default_float(value) for name, value in options.items()}
        if self.make is None:
            made = self._bind(options)
        else:
            made = self.make(**options) if options else self
        given = tuple((dict(self.given) | options).items())
        chosen = tuple((options | {"lower_order_final": final}).items())
        return dataclasses.replace(
            made, lower_order_final=final, given=given, origin=(_with_options, (self.origin, chosen))
        )

    @property
    def family(self) -> "tuple[Step, ...]":
        """Its orders, lowest first."""
        return (*self.start, self)

    def _bind(self, options: dict) -> "Step":
        unknown(options, self.options(), self.name)
        if not options:
            return self

        def sub(step: "Step | None") -> Any:  # the lower orders follow the options that they know
            if step is None:
                return None
            return step._bind({k: v for k, v in options.items() if k in step.options()})

        return dataclasses.replace(
            self,
            formula=functools.partial(self.formula, **options),
            start=tuple(map(sub, self.start)),
            to_zero=sub(self.to_zero),
            from_noise=sub(self.from_noise),
        )

    def replace(self, **changes: Any) -> "Step":
        """A copy with other rules."""
        return dataclasses.replace(
            self, **({"origin": (_with_rules, (self.origin, tuple(changes.items())))} | changes)
        )

    def options(self) -> list[str]:
        """Names of its options."""
        parameters = inspect.signature(self.formula if self.make is None else self.make).parameters.values()
        return [p.name for p in parameters if self.make is not None or p.kind is p.KEYWORD_ONLY]

    @functools.cached_property
    def _identity(self) -> Any:
        return identity(self)

    @functools.cached_property
    def ours(self) -> bool:
        """Whether all its code is of this package, so that it reads nothing that a user may change."""
        package = str(Path(__file__).parents[1])
        return all(code.co_filename.startswith(package) for code in codes(self._identity))

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Step) and self._identity == other._identity

    def __hash__(self) -> int:
        return hash(self._identity)

    def __repr__(self) -> str:
        options = ", ".join(f"{name}={_short(value)}" for name, value in self.given)
        facts = [f"order {self.order}"]
        try:
            calls = self.calls
            facts.append(f"{calls} call{'s' if calls != 1 else ''} a step")
        except Exception:  # under construction, or for paths of another kind: the line leaves the calls out
            pass
        facts += ["draws noise"] if self.stochastic else []
        return f"<{self.name}{f'({options})' if options else ''}: {', '.join(facts)}>"

    def __reduce__(self) -> tuple:
        """By name and options; PicklingError for a step that cannot be imported."""
        try:
            same = _again(self.origin) == self and bool(pickle.dumps(self.origin))
        except (ImportError, AttributeError, TypeError, pickle.PicklingError):
            same = False
        if not same:
            raise pickle.PicklingError(
                f"cannot pickle the step {self.name}: it was made inside a function or a session; "
                "define it in a module, or save its table (js.tabulate(..).save(path))"
            )
        return _again, (self.origin,)


def _again(origin: tuple | None) -> Step:
    """The step that an origin tells how to make."""
    if origin is None:
        raise TypeError("no origin")
    function, arguments = origin
    return function(*arguments)


def named(module: str, name: str) -> Step:
    found = functools.reduce(
        getattr, name.split("."), sys.modules.get(module) or __import__(module, fromlist=["_"])
    )
    if not isinstance(found, Step):
        raise AttributeError(f"{module}.{name} is not a step")
    return found


def _with_options(origin: tuple | None, options: tuple) -> Step:
    return _again(origin)(**dict(options))


def _with_rules(origin: tuple | None, rules: tuple) -> Step:
    return _again(origin).replace(**dict(rules))


def _default_float(value: Any) -> Any:
    """A jax array of floats as numpy float64, like all concrete coefficients; a traced one in JAX's default
    precision.
    """
    if isinstance(value, jax.Array) and jnp.issubdtype(value.dtype, jnp.floating):
        return value.astype(jnp.result_type(float)) if is_traced(value) else np.asarray(value, np.float64)[()]
    return value


def _short(value: Any) -> str:
    """The value of an option in a line."""
    if is_traced(value):
        return "traced"
    if isinstance(value, float | np.floating):
        return f"{float(value):g}"
    if isinstance(value, np.ndarray):
        return f"array{list(value.shape)}"
    line = " ".join(repr(value).split())
    return line if len(line) <= 60 else f"{line[:57]}..."


def unknown(given: Iterable[str], valid: Sequence[str], what: str) -> None:
    """Raise a TypeError that names the nearest valid option if one of `given` is not in `valid`."""
    for name in given:
        if name not in valid:
            raise TypeError(f"{what} has no option {name!r}; {nearest(name, [*valid, 'lower_order_final'])}")
