"""Ray Data: the page's recipe as it stands, on a real local cluster, a worker killed on the way."""

import copy
import os
import signal
from pathlib import Path

import numpy as np
import pytest
from conftest import DOCS
from documented_examples import code_blocks

from skcompressae import CompresSAETransformer
from skcompressae.arrow import codes_from_arrow

ray = pytest.importorskip("ray", reason="Ray is not installed: install the extra 'ray' of skcompressae")
pytest.importorskip("ray.data")
pa = pytest.importorskip("pyarrow")
pq = pytest.importorskip("pyarrow.parquet")

PAGE = DOCS / "scaling_out.md"

pytestmark = [
    # Ray leaves pipes and sockets of its processes to the garbage collector
    pytest.mark.filterwarnings("ignore::ResourceWarning"),
    # its own deprecated settings, which it reads itself
    pytest.mark.filterwarnings(r"ignore::DeprecationWarning:ray\..*"),
]


class Mortal(CompresSAETransformer):
    """A compressor that says whose memory its weights are in, and once ends its process while it encodes."""

    def transform(self, X):
        weights = self.components_
        place = "own" if weights.flags.owndata or weights.flags.writeable else "shared"
        (Path(self.folder) / f"{os.getpid()}-{place}").touch()
        codes = super().transform(X)
        if not (Path(self.folder) / "killed").exists():
            (Path(self.folder) / "killed").touch(exist_ok=False)
            os.kill(os.getpid(), signal.SIGKILL)
        return codes


@pytest.fixture
def cluster(tmp_path_factory, monkeypatch):
    """Two processors, the smallest object store that Ray allows, and no word to anybody outside."""
    monkeypatch.setenv("RAY_USAGE_STATS_ENABLED", "0")
    monkeypatch.setenv("RAY_worker_niceness", "0")  # workers get niceness 15 otherwise
    tests = Path(__file__).resolve().parent
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join([str(tests.parent), str(tests)]))  # workers import Mortal
    ray.init(
        num_cpus=2,
        include_dashboard=False,
        object_store_memory=80 * 2**20,
        log_to_driver=False,
        logging_level="ERROR",
        _node_ip_address="127.0.0.1",
    )
    context = ray.data.DataContext.get_current()
    context.enable_progress_bars = False
    context.target_max_block_size = 2**14  # tasks of some 150 rows
    yield
    ray.shutdown()


def test_parquet_to_parquet_with_a_worker_killed(cluster, fitted, embeddings, tmp_path):
    (tmp_path / "embeddings").mkdir()
    for i, rows in enumerate(np.array_split(embeddings, 8)):
        column = pa.FixedSizeListArray.from_arrays(pa.array(rows.reshape(-1)), rows.shape[1])
        table = pa.table({"id": pa.array(np.arange(50) + 50 * i), "embedding": column})
        pq.write_table(table, tmp_path / "embeddings" / f"part-{i}.parquet")
    compressor = copy.copy(fitted)
    compressor.__class__ = Mortal
    compressor.folder = str(tmp_path)

    (recipe,) = (block for block in code_blocks(PAGE, "python") if block.startswith("import ray\n"))
    recipe = recipe.replace("/data", str(tmp_path)).replace("8192", "100")
    exec(compile(recipe, str(PAGE), "exec"), {"compressor": compressor})

    assert (tmp_path / "killed").exists()
    workers = {path.name for path in tmp_path.glob("*-*")}
    assert len(workers) >= 2
    assert all(name.endswith("-shared") for name in workers)  # one copy of the weights for all workers of a node
    assert len(list((tmp_path / "codes").glob("*.parquet"))) > 1
    table = pq.read_table(tmp_path / "codes").sort_by("id")
    assert table.column("id").to_pylist() == list(range(400))
    codes, expected = codes_from_arrow(table), fitted.transform(embeddings)
    assert abs(codes - expected).max() <= 1e-5 * abs(expected).max()
