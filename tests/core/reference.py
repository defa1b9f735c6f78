"""Slow, obvious float64 versions of the paper's algorithm, of the default form and of Muon, for one matrix.

Written straight from the formulas with SVDs and `matrix_power` by eigenvalues; shares no code with `fismo_core`.
"""

import numpy as np

Array = np.ndarray


def power(A: Array, p: float) -> Array:
    values, V = np.linalg.eigh(A)
    return (V * values**p) @ V.T


def polar(X: Array) -> Array:
    U, _, Vt = np.linalg.svd(X, full_matrices=False)
    return U @ Vt


def quintic(X: Array, steps: int) -> Array:
    if X.shape[0] > X.shape[1]:
        return quintic(X.T, steps).T
    X = X / np.linalg.norm(X)
    for _ in range(steps):
        A = X @ X.T
        X = 3.4445 * X + (-4.7750 * A + 2.0315 * A @ A) @ X
    return X


def paper(gradients: list[Array], lr: float, beta: float, gamma: float, mu: float) -> Array:
    """Total displacement after the gradients, by the algorithm box of arXiv 2601.21750."""
    m, n = gradients[0].shape
    P, Q, M, W = np.eye(m), np.eye(n), np.zeros((m, n)), np.zeros((m, n))
    for G in gradients:
        L = G @ np.linalg.inv(Q) @ G.T / n + mu * np.trace(P) / m * np.eye(m)
        P = gamma * P + (1 - gamma) * L
        P = m / np.trace(P) * P
        P = (P + P.T) / 2
        R = G.T @ np.linalg.inv(P) @ G / m + mu * np.trace(Q) / n * np.eye(n)
        Q = gamma * Q + (1 - gamma) * R
        Q = n / np.trace(Q) * Q
        Q = (Q + Q.T) / 2
        whitened = power(P, -0.5) @ G @ power(Q, -0.5)
        M = beta * M + (1 - beta) * whitened
        W = W - lr * power(P, -0.5) @ polar(M) @ power(Q, -0.5)
    return W


def composite(X: Array) -> Array:
    """The polynomials of degree five and nine of docs/algorithm.md."""
    if X.shape[0] > X.shape[1]:
        return composite(X.T).T
    X = X / np.linalg.norm(X)
    A = X @ X.T
    X = 3.809688 * X + (-7.127689 * A + 4.472581 * A @ A) @ X
    A = X @ X.T
    a, b, c, d, e = 7.242633, -39.837615, 90.251552, -82.900884, 26.280993
    return a * X + (b * A + c * A @ A + d * A @ A @ A + e * A @ A @ A @ A) @ X


def default(
    gradients: list[Array],
    lr: float,
    beta: float,
    gamma: float,
    mu: float,
    p: float,
    *,
    economy: str,
    interval: int,
    quintics: int | None = None,
) -> Array:
    """Total displacement by the default form: scale-free statistics, power p, raw Nesterov momentum, grafting.

    With an economy but `none` a side longer than 1.5 times the other is diagonal; with `most` P and Q are updated in
    turn. The polar factor is the composite one, or by so many quintics.
    """
    m, n = gradients[0].shape
    P, Q, M, W = np.zeros((m, m)), np.zeros((n, n)), np.zeros((m, n)), np.zeros((m, n))
    P_damped, Q_damped = np.eye(m), np.eye(n)

    def cut(A: Array, other: int) -> Array:
        return A if economy == "none" or len(A) <= 1.5 * other else np.diag(np.diag(A))

    for t, G in enumerate(gradients):
        renew = t % interval == 0 or (t < interval and t in (1, 2, 4, 8))
        if economy != "most" or t == 0 or t % 2 == 0:
            L = cut(G @ np.linalg.inv(Q_damped) @ G.T, n)
            P = gamma * P + (1 - gamma) * m * L / np.trace(L)
        if renew:
            P_damped = (m / np.trace(P) * P + mu * np.eye(m)) / (1 + mu)
        if economy != "most" or t == 0 or t % 2 == 1:
            R = cut(G.T @ np.linalg.inv(P_damped) @ G, m)
            Q = gamma * Q + (1 - gamma) * n * R / np.trace(R)
        if renew:
            Q_damped = (n / np.trace(Q) * Q + mu * np.eye(n)) / (1 + mu)
        M = beta * M + (1 - beta) * G
        U = beta * M + (1 - beta) * G
        X = power(P_damped, -p) @ U @ power(Q_damped, -p)
        Z = composite(X) if quintics is None else quintic(X, quintics)
        D = power(P_damped, -p) @ Z @ power(Q_damped, -p)
        W = W - lr * max(1.0, m / n) ** 0.5 * np.linalg.norm(Z) / np.linalg.norm(D) * D
    return W


def muon(gradients: list[Array], lr: float, beta: float, steps: int) -> Array:
    """Total displacement by Muon (Nesterov, Newton-Schulz, sqrt(max(1, m/n)))."""
    m, n = gradients[0].shape
    M, W = np.zeros((m, n)), np.zeros((m, n))
    for G in gradients:
        M = beta * M + (1 - beta) * G
        W = W - lr * max(1.0, m / n) ** 0.5 * quintic(beta * M + (1 - beta) * G, steps)
    return W
