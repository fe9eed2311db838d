"""Training recipes: what the parameters left at "auto" become."""

from __future__ import annotations

from dataclasses import dataclass, replace

__all__ = ["RECIPES", "Recipe"]


@dataclass(frozen=True)
class Recipe:
    """Defaults of one way to train; `docs/recipes.md` says where each figure comes from."""

    init: str
    learning_rate: float  # the peak, where a latent is used often enough
    learning_rate_schedule: str
    warmup_fraction: float
    max_iter: int
    batch_size: int
    beta2: float  # decay of Adam's second moments
    rests_idle: bool  # whether latents that a batch does not use stay where they are
    coding: str
    early_stopping: bool
    neighborhood_weight_at_32: float  # nonzeros or more
    usage_power: float
    n_refits: int
    flattening: float

    # Uses of a latent by a batch, on average, from which on the learning rate is the full one; 0: always.
    full_rate_uses: float
    min_batches_per_epoch: int  # smaller batches where the training set is small, so that an epoch is several steps

    def batch_size_for(self, n_rows: int) -> int:
        """Return the batch size for a training set of `n_rows` rows."""
        return max(1, min(self.batch_size, n_rows, max(64, n_rows // self.min_batches_per_epoch)))

    def learning_rate_for(self, n_uses: float) -> float:
        """Return the peak learning rate where a batch uses a latent `n_uses` times on average.

        Fewer rows behind a gradient are a noisier gradient, which the square root keeps in proportion.
        """
        share = n_uses / self.full_rate_uses if self.full_rate_uses else 1.0
        return self.learning_rate * min(1.0, share**0.5)

    def neighborhood_weight_for(self, k: int) -> float:
        """Return the weight of the neighbourhood term where codes have `k` nonzeros.

        Short codes, which share fewest latents, gain more by a larger one than dense queries lose; at 64 a smaller one
        gains these nothing.
        """
        return self.neighborhood_weight_at_32 * max(1.0, 32 / k) ** 0.5


_DEFAULT = Recipe(
    init="data",
    learning_rate=6e-3,
    learning_rate_schedule="cosine",
    warmup_fraction=0.05,
    max_iter=2000,
    batch_size=1024,
    beta2=0.99,
    rests_idle=True,
    coding="pursuit",
    early_stopping=False,
    neighborhood_weight_at_32=1.0,
    usage_power=0.15,
    n_refits=0,
    flattening=0.2,
    full_rate_uses=96.0,
    min_batches_per_epoch=16,
)

RECIPES = {
    "default": _DEFAULT,
    "dense": replace(_DEFAULT, coding="refined_pursuit", n_refits=3),
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
        rests_idle=False,
        coding="activations",
        early_stopping=False,
        neighborhood_weight_at_32=0.0,
        usage_power=0.0,
        n_refits=0,
        flattening=0.0,
        full_rate_uses=0.0,
        min_batches_per_epoch=1,
    ),
}
