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
    beta2: float  # decay of Adam's second moments
    coding: str
    early_stopping: bool
    neighborhood_weight: float

    min_batches_per_epoch: int  # smaller batches where the training set is small, so that an epoch is several steps

    def batch_size_for(self, n_rows: int) -> int:
        """Return the batch size for a training set of `n_rows` rows."""
        return max(1, min(self.batch_size, n_rows, max(64, n_rows // self.min_batches_per_epoch)))


RECIPES = {
    "default": Recipe(
        init="data",
        learning_rate=6e-3,
        learning_rate_schedule="cosine",
        warmup_fraction=0.05,
        max_iter=2000,
        batch_size=1024,
        beta2=0.99,
        coding="pursuit",
        early_stopping=False,
        neighborhood_weight=1.0,
        min_batches_per_epoch=16,
    ),
    # Kasalicky et al. (2025), section 4: Adam, batches of 100,000, 500 steps. The paper names no learning rate; 1e-3
    # suits batches of that size.
    "paper": Recipe(
        init="kaiming",
        learning_rate=1e-3,
        learning_rate_schedule="constant",
        warmup_fraction=0.0,
        max_iter=500,
        batch_size=100_000,
        beta2=0.999,
        coding="activations",
        early_stopping=False,
        neighborhood_weight=0.0,
        min_batches_per_epoch=1,
    ),
}
