"""One step per interval: the order of a solver grows at the start of the grid and may fall at its end."""

from typing import Any

from .steps import Step


def schedule(solver: Any, n: int, *, to_zero: bool, from_noise: bool) -> list[Step]:
    """One step per interval: the rules of a step spelled out, or a list of steps taken literally.

    Out of alpha = 0 a listed step gives way to its own step for that, as it cannot start there.
    """
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
        if from_noise and steps[0].from_noise is not None:  # the step itself cannot leave alpha = 0
            steps[0] = steps[0].from_noise
    else:
        raise TypeError(
            f"solver must be a step, a list of steps or a js.Solver, got {solver!r}; see js.solvers.by_name"
        )
    for i, s in enumerate(steps):
        if max(s.past, s.states, s.inputs) > i:
            what = f"{s.past} past outputs" if s.past >= s.states else f"{s.states} past states"
            raise ValueError(
                f"{s.name} at interval {i} reads {what} but only {i} intervals came before; start with lower "
                "orders"
            )
        if s.assumed is not None and i > 0:
            raise ValueError(f"{s.name} at interval {i} assumes its output: only the first interval may")
    return steps
