"""Prints the two polynomials of `polar: composite`: how they were found.

The first is the odd polynomial of degree five with the least greatest distance to one on [0.25, 1]. The second is that
of degree nine on [s, h], where h is the greatest value of the first on [0, 1], and s is as small as it may be for the
distance to be 0.3. By linear programming on a fine grid.

    python benchmarks/polynomials.py
"""

import math

import numpy as np
from scipy.optimize import linprog

LOWEST = 0.25
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
    first, distance = nearest_to_one(5, LOWEST, 1.0)
    print(f"[{LOWEST}, 1] into one +- {distance:.4f}:", ", ".join(f"{c:.6f}" for c in first))
    x = np.linspace(0, 1, 200_001)
    highest = float((first[0] * x + first[1] * x**3 + first[2] * x**5).max())
    low, high = 1e-3, 0.5
    for _ in range(50):
        middle = math.sqrt(low * high)
        if nearest_to_one(9, middle, highest)[1] > DISTANCE:
            low = middle
        else:
            high = middle
    second, distance = nearest_to_one(9, high, highest)
    print(f"[{high:.4f}, {highest:.4f}] into one +- {distance:.4f}:", ", ".join(f"{c:.6f}" for c in second))


if __name__ == "__main__":
    main()
