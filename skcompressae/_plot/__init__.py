"""Displays in the manner of scikit-learn's: computed by ``from_*`` class methods, drawn by ``plot``."""

from skcompressae._plot.loss_curve import LossCurveDisplay
from skcompressae._plot.tradeoff import CompressionTradeoffDisplay
from skcompressae._plot.usage import LatentUsageDisplay

__all__ = ["CompressionTradeoffDisplay", "LatentUsageDisplay", "LossCurveDisplay"]
