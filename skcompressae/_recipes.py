"""Training recipes: what the parameters left at "auto" become."""

from __future__ import annotations

from dataclasses import dataclass

__all__ = ["RECIPES", "Recipe"]


@dataclass(frozen=True)
class Recipe:
    """Defaults of one way to train; `docs/recipes.md` says where each figure comes from."""

    init: str
    learning_rate: float
    learning_rate_schedule: str
    warmup_fraction: float
    max_iter: int
    batch_size: int
    coding: str
    early_stopping: bool
    neighborhood_weight: float

    def batch_size_for(self, n_rows: int) -> int:
        """Return the batch size for a training set, small enough for some 16 batches an epoch where it is small."""
        return max(1, min(self.batch_size, n_rows, max(64, n_rows // 16)))


RECIPES = {
    "default": Recipe(
        init="data",
        learning_rate=3e-3,
        learning_rate_schedule="cosine",
        warmup_fraction=0.05,
        max_iter=1000,
        batch_size=2048,
        coding="pursuit",
        early_stopping=True,
        neighborhood_weight=0.1,
    ),
    # Kasalicky et al. (2025), section 4: Adam, batches of 100,000, 500 steps. The paper names no learning rate; 1e-3
    # was the best constant one in benchmarks/quality.py.
    "paper": Recipe(
        init="kaiming",
        learning_rate=1e-3,
        learning_rate_schedule="constant",
        warmup_fraction=0.0,
        max_iter=500,
        batch_size=100_000,
        coding="activations",
        early_stopping=False,
        neighborhood_weight=0.0,
    ),
}
