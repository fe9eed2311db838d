"""
Read the latents
================

What do inputs that share a latent have in common?

A latent is a direction of the embedding space that training found useful. Some can be read from the inputs that
fire them hardest; not all can.
"""

# %%
# Codes of docstrings
# -------------------
import numpy as np
from docstring_corpus import embedded_docstrings, summary

from skcompressae import CompresSAETransformer

entries, X, _ = embedded_docstrings()
compressor = CompresSAETransformer(n_components=256, k=8, max_iter=300, norm="unit", random_state=0)
codes = compressor.fit_transform(X).tocsc()

# %%
# Which inputs fire a latent hardest
# ----------------------------------
# Read in the order of the latents' strongest activations, and look at ten docstrings of each of the first four. A
# latent fires with either sign; here is the stronger one.
strength = np.asarray(abs(codes).max(axis=0).todense()).ravel()
for latent in np.argsort(-strength)[:4]:
    rows, values = codes[:, [latent]].nonzero()[0], codes[:, [latent]].data
    values = values * np.sign(values[np.abs(values).argmax()])
    print(f"\nlatent {latent}, in {len(rows)} codes:")
    for i in np.argsort(-values)[:10]:
        name = ".".join(entries[rows[i]].name.split(".")[-2:])
        print(f"  {values[i]:+.2f}  {name}: {summary(entries[rows[i]])[:60]}")

# %%
# How often each latent is used
# -----------------------------
# A latent that no row uses is dead: it costs index bits and gives nothing. One that nearly every row uses tells
# rows apart only by its value.
import matplotlib.pyplot as plt

from skcompressae import LatentUsageDisplay

print(f"dead latents: {compressor.dead_latents_fraction_:.1%}")
figure, axis = plt.subplots(figsize=(5.5, 3.6), layout="constrained")
LatentUsageDisplay.from_estimator(compressor, ax=axis)
plt.show()

# %%
# As a histogram
# --------------
usage = compressor.latent_counts_ / compressor.n_rows_counted_
figure, axis = plt.subplots(figsize=(5.5, 3.6), layout="constrained")
axis.hist(100 * usage[usage > 0], bins=np.geomspace(0.02, 100, 30), color="#0072B2")
axis.axvline(100 * compressor.k / 256, color="0.3", linestyle="--", label="if all were used equally")
axis.set(xscale="log", xlabel="share of rows that use the latent, %", ylabel="latents", title="Usage of live latents")
axis.legend()
plt.show()
