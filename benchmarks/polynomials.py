"""Prints the polynomial of degree nine of `fismo_core/polar.py`: how it was found.

Muon's quintic leaves no singular value above 1.21. The polynomial is the odd one of degree nine with the least greatest
distance to one on [s, 1.21], by linear programming on a fine grid; s is as small as it may be for that distance to be
0.3.

    python benchmarks/polynomials.py
"""

import math

import numpy as np
from scipy.optimize import linprog

HIGHEST = 1.21
DISTANCE = 0.3
GRID = 4000


def nearest_to_one(degree: int, low: float, high: float) -> tuple[list[float], float]:
    """Coefficients of x, x^3, ... of the odd polynomial with the least max |p - 1| on [low, high], and that maximum."""
    x = np.geomspace(low, high, GRID)
    powers = range(1, degree + 1, 2)
    columns = np.stack([(x / high) ** k for k in powers], axis=1)
    ones = np.ones((GRID, 1))
    found = linprog(
        [0.0] * len(powers) + [1.0],
        A_ub=np.block([[columns, -ones], [-columns, -ones]]),
        b_ub=np.concatenate([ones[:, 0], -ones[:, 0]]),
        bounds=[(None, None)] * len(powers) + [(0, None)],
    )
    return [c / high**k for c, k in zip(found.x, powers, strict=False)], float(found.x[-1])


def main() -> None:
    low, high = 1e-3, 0.5
    for _ in range(50):
        middle = math.sqrt(low * high)
        if nearest_to_one(9, middle, HIGHEST)[1] > DISTANCE:
            low = middle
        else:
            high = middle
    coefficients, distance = nearest_to_one(9, high, HIGHEST)
    print(f"[{high:.4f}, {HIGHEST}] into one +- {distance:.4f}:", ", ".join(f"{c:.6f}" for c in coefficients))


if __name__ == "__main__":
    main()
