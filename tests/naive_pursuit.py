"""The formulas of pursuit for one row, every step solved anew: what kernels and graphs are compared with."""

import numpy as np

from skcompressae._core._flattening import MIN_LEFT
from skcompressae._core._pursuit import GUIDANCE, RIDGE


def naive_values(x, rows):
    """Ridge least squares of one x on decoder rows."""
    return np.linalg.solve(rows @ rows.T + RIDGE * np.eye(len(rows)), rows @ x)


def naive_pursuit(x, decoder, candidates, activations, k):
    """Take half of a code by activation and pick the rest in rounds; `candidates` are more than k.

    Return indices, values, and the least difference that a choice was made by.
    """
    magnitudes = np.abs(activations)
    guidance = GUIDANCE * magnitudes / np.sort(magnitudes)[-k]
    picked, scores, n_picks, gap = [], magnitudes, k // 2, np.inf
    n_left = k - n_picks
    sizes = [n_left - n_left // 2, n_left // 2 - n_left // 4, n_left // 4]  # half, a quarter, a quarter
    while True:
        if n_picks:
            best = np.argsort(-scores, kind="stable")
            gap = min(gap, scores[best[n_picks - 1]] - scores[best[n_picks]])
            picked += list(best[:n_picks])
        rows = decoder[candidates[picked]]
        unexplained = x - naive_values(x, rows) @ rows
        if len(picked) == k:
            break
        scores = np.abs(decoder[candidates] @ unexplained) + guidance
        scores[picked] = -1
        n_picks = sizes.pop(0)
    picked = np.sort(picked)
    return candidates[picked], naive_values(x, decoder[candidates[picked]]), gap


def naive_refinement(x, decoder, chosen, values):
    """Pursue again among the latents of a code and as many others; results are those of `naive_pursuit`."""
    k = len(chosen)
    correlations = decoder @ (x - values @ decoder[chosen])
    order = np.argsort(-np.abs(correlations), kind="stable")
    others = order[~np.isin(order, chosen)]
    proposed, left = others[:k], others[k:]
    if len(proposed) == 0:
        return chosen, values, np.inf
    gap = np.abs(correlations[proposed[-1]]) - np.abs(correlations[left[0]]) if len(left) else np.inf
    activations = correlations.copy()
    activations[chosen] = values
    candidates = np.union1d(chosen, proposed)
    *code, smallest = naive_pursuit(x, decoder, candidates, activations[candidates], k)
    return *code, min(gap, smallest)


def naive_flattening(values, rows, flattening):
    """Draw together the fitted values of a unit row's code."""
    flattening = 0.2 if flattening == "auto" else flattening
    explained = np.linalg.norm(values @ rows) ** 2
    rest = np.sqrt(1 - explained) if 1 - explained > MIN_LEFT else 0
    return np.sign(values) * np.abs(values) ** (1 - flattening * rest * min(1, explained / (values**2).sum()))
