"""The picture of the method: one image, its code, the latents in it, and what they add up to."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from sklearn.datasets import load_digits

from skcompressae import CompresSAETransformer

K = 6
N_COMPONENTS = 64


def draw_code(path: Path, shown: int = 3) -> None:
    """Draw a handwritten digit (64 numbers) as a few signed latents."""
    from matplotlib.figure import Figure

    X = load_digits().data.astype(np.float32)
    model = CompresSAETransformer(n_components=N_COMPONENTS, k=K, learning_rate=1e-3, max_iter=400, random_state=0).fit(
        X
    )
    code = model.transform(X[shown : shown + 1])
    image, restored = X[shown], model.inverse_transform(code)[0]
    cosine = float(image @ restored / np.linalg.norm(image) / np.linalg.norm(restored))
    order = np.argsort(-np.abs(code.data))
    latents, values = code.indices[order], code.data[order]

    # one point of a letter is about one pixel of a phone
    figure = Figure(figsize=(4.7, 6.4), layout="constrained")
    top, middle, bottom = figure.subfigures(3, 1, height_ratios=(1.2, 1, 2))
    left, right = top.subplots(1, 2)
    limits = {"cmap": "RdBu_r", "vmin": -16, "vmax": 16}
    left.imshow(image.reshape(8, 8), **limits)
    left.set_title("row x: 64 numbers", fontsize=11)
    right.imshow(restored.reshape(8, 8), **limits)
    right.set_title(f"reconstruction s D: cosine {cosine:.2f}", fontsize=11)
    axis = middle.subplots()
    axis.vlines(code.indices, 0, code.data, color="#0072B2", linewidth=3)
    axis.axhline(0, color="0.4", linewidth=0.8)
    axis.set_xlim(-1, N_COMPONENTS)
    axis.set_xlabel("latent", fontsize=11)
    axis.set_title(f"code s: {K} nonzeros of {N_COMPONENTS}", fontsize=11)
    axes = bottom.subplots(2, K // 2).ravel()
    bottom.suptitle("the six rows of D in it, each times its value", fontsize=11)
    for axis, latent, value in zip(axes, latents, values, strict=True):
        axis.imshow((value * model.components_[latent]).reshape(8, 8), **limits)
        axis.set_xlabel(f"{value:+.0f} of latent {latent}", fontsize=11)
    for axis in (left, right, *axes):
        axis.set(xticks=[], yticks=[])
    figure.savefig(path)
