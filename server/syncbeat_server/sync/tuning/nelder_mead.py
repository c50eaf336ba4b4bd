"""Minimises a function by the simplex method. Pure.

The method is that of Nelder and Mead, "A simplex method for function minimization", 1965, with the step sizes of the
paper: reflect by 1, expand by 2, contract and shrink by one half.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
from numpy.typing import NDArray

Array = NDArray[np.float64]


def minimise(
    function: Callable[[Array], float],
    start: Array,
    step: float,
    exact: float,
    evaluations: int,
    out_of_time: Callable[[], bool],
) -> tuple[Array, float]:
    """Return the best point found and its value. A value that is no number counts as infinite.

    It ends when the values at the corners differ by less than `exact`, after so many evaluations, or when out of time.
    """
    left = evaluations

    def value(point: Array) -> float:
        nonlocal left
        left -= 1
        found = function(point)
        return found if found == found else np.inf

    corners = [start, *(start + step * unit for unit in np.eye(len(start)))]
    ranked = sorted((value(corner), tuple(corner)) for corner in corners)
    while left > 0 and not out_of_time() and ranked[-1][0] - ranked[0][0] > exact:
        worst = np.array(ranked[-1][1])
        centre = np.mean([corner for _, corner in ranked[:-1]], axis=0)
        reflected = 2.0 * centre - worst
        height = value(reflected)
        if height < ranked[0][0]:
            expanded = 3.0 * centre - 2.0 * worst
            further = value(expanded)
            ranked[-1] = (further, tuple(expanded)) if further < height else (height, tuple(reflected))
        elif height < ranked[-2][0]:
            ranked[-1] = (height, tuple(reflected))
        else:
            nearer = (centre + reflected) / 2.0 if height < ranked[-1][0] else (centre + worst) / 2.0
            contracted = value(nearer)
            if contracted < min(height, ranked[-1][0]):
                ranked[-1] = (contracted, tuple(nearer))
            else:
                best = np.array(ranked[0][1])
                shrunk = [(best + np.array(corner)) / 2.0 for _, corner in ranked[1:]]
                ranked[1:] = [(value(corner), tuple(corner)) for corner in shrunk]
        ranked.sort()
    return np.array(ranked[0][1]), ranked[0][0]
