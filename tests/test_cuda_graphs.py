"""Work recorded as graphs, with a stand-in for CUDA's recorder that runs the work anew at each replay."""

import time
from concurrent.futures import ThreadPoolExecutor
from contextlib import nullcontext
from dataclasses import replace
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from conftest import assert_goes_with_its_last_reference, make_embeddings
from test_training_step import SETTINGS

from skcompressae._core._initialise import data_weights
from skcompressae._core._rows import unit_rows
from skcompressae._torch import _encode_graph, _graph_recorder, _step_graph
from skcompressae._torch._encode_graph import EncodeGraphs
from skcompressae._torch._graph_recorder import N_PLAIN, GraphRecorder
from skcompressae._torch._step_graph import StepGraphs
from skcompressae._torch._torch_engine import TorchEngine
from skcompressae._torch._weights import Moments, Weights

CPU = torch.device("cpu")


@pytest.fixture(autouse=True)
def nothing_abandoned(monkeypatch):
    monkeypatch.setattr(_graph_recorder, "_abandoned", [])


class Replayed:
    """Puts what the work returns where it was first returned."""

    def __init__(self, work, found):
        self._work, self._found = work, found

    def replay(self):
        for target, part in zip(self._found, self._work(), strict=True):
            target.copy_(part)


class StandIn:
    has_failed = False

    def __init__(self, device):
        self.n_recorded = 0

    def record(self, work, *, runs_first=False):
        self.n_recorded += 1
        # recorded, not run: the tensors are there, with anything in them
        found = tuple(torch.full_like(part, 7) for part in work()) if runs_first else tuple(torch.ones(2, 3))
        return Replayed(work, found), found


@pytest.fixture
def stand_in(monkeypatch):
    for module in (_step_graph, _encode_graph):
        monkeypatch.setattr(module, "GraphRecorder", StandIn)


@pytest.fixture
def broken(monkeypatch):
    def fail(self, work, runs_first):
        raise RuntimeError("operation not permitted when stream is capturing")

    monkeypatch.setattr(GraphRecorder, "_record", fail)


def doubled(rows):
    return 2 * rows, rows.sum(dim=1)


def arrays(n_rows):
    return np.random.RandomState(n_rows).standard_normal((n_rows, 5)).astype(np.float32)


def test_rows_encoded_by_a_graph_are_those_of_the_call(stand_in):
    graphs = EncodeGraphs(CPU)
    for call in range(3 * N_PLAIN):
        for n_rows in (3, 4, 7):
            rows = arrays(n_rows) + call
            for given in (rows, rows[::-1], np.asfortranarray(rows)):
                found, sums = graphs(given, ("doubled",), doubled)
                np.testing.assert_array_equal(found, 2 * given)
                np.testing.assert_allclose(sums, given.sum(axis=1), rtol=1e-5)
    assert graphs._recorder.n_recorded == 2  # of 4 rows and of 8


def test_rows_that_are_read_only_are_taken(stand_in):
    graphs, rows = EncodeGraphs(CPU), arrays(4)
    rows.setflags(write=False)
    for _ in range(2 * N_PLAIN):
        np.testing.assert_array_equal(graphs(rows[::-1], (), doubled)[0], 2 * rows[::-1])


def test_what_else_is_asked_of_rows_has_its_own_graph(stand_in):
    graphs, rows = EncodeGraphs(CPU), arrays(4)
    for _ in range(2 * N_PLAIN):
        np.testing.assert_array_equal(graphs(rows, (2,), lambda given: (2 * given,))[0], 2 * rows)
        np.testing.assert_array_equal(graphs(rows, (3,), lambda given: (3 * given,))[0], 3 * rows)
    assert len(graphs._graphs) == 2


def test_few_kinds_are_recorded(stand_in):
    graphs = EncodeGraphs(CPU)
    for kind in range(2 * _encode_graph._MAX_GRAPHS):
        for _ in range(N_PLAIN + 1):
            graphs(arrays(2), (kind,), doubled)
    assert len(graphs._graphs) == graphs._recorder.n_recorded == _encode_graph._MAX_GRAPHS


def test_what_cannot_be_recorded_is_run(broken):
    graphs, rows = EncodeGraphs(CPU), arrays(4)
    for call in range(3 * N_PLAIN):
        if call == N_PLAIN:
            with pytest.warns(RuntimeWarning, match="no CUDA graph could be recorded.*stream is capturing"):
                found = graphs(rows, (), doubled)
        else:  # pytest is told to raise what else is warned of
            found = graphs(rows, (), doubled)
        np.testing.assert_array_equal(found[0], 2 * rows)


def take_steps(graphs, n_rows, n_steps):
    """Steps that add their batch and rate to a state; what they find, and the state."""
    state = torch.zeros(3)

    def take_step(blocks, n_rows, rates, settings, share):
        for block in blocks:
            state.add_(block.sum(dim=0) * rates)
        return state.clone(), 10 * state

    found = []
    for number in range(n_steps):
        blocks = iter([torch.full((n_rows, 3), float(number)), torch.ones(2, 3)])
        found.append(graphs(take_step, blocks, n_rows, torch.tensor(0.5 + number), SETTINGS, 1.0))
    return found, state


@pytest.mark.parametrize("kind", ["stand_in", "broken"])
@pytest.mark.filterwarnings("ignore:no CUDA graph could be recorded")
def test_steps_by_graphs_are_those_taken(request, kind):
    request.getfixturevalue(kind)
    found, state = take_steps(StepGraphs(CPU), 4, 3 * N_PLAIN)
    numbers = np.arange(3 * N_PLAIN)
    sums = np.cumsum((0.5 + numbers) * (4 * numbers + 2))
    np.testing.assert_allclose([cosines[0] for cosines, _ in found], sums)  # each its own, though graphs write anew
    np.testing.assert_allclose([fired[0] for _, fired in found], 10 * sums)
    assert state[0] == sums[-1]


def test_graphs_do_not_keep_an_engine(stand_in):
    rows = make_embeddings(n_rows=300)
    weights = Weights(*data_weights(unit_rows(rows)[0], 64, 0.5, np.random.RandomState(1)))
    settings = replace(SETTINGS, batch_size=16)
    engine = TorchEngine(rows, weights, Moments.zeros_like(weights), settings, CPU)
    engine._graphs = StepGraphs(CPU)
    for _ in range(3):
        engine.step(np.arange(16), 1e-3)
    holder = [engine]
    del engine
    assert_goes_with_its_last_reference(holder)


def test_recorders_work_one_at_a_time_each_with_its_stream_and_pool(monkeypatch):
    """With stand-ins for what torch knows of CUDA."""
    log, n_inside = [], []

    class Recording(nullcontext):
        def __init__(self, graph, pool, stream, capture_error_mode):
            assert capture_error_mode == "thread_local"
            log.append((pool, stream.name))
            super().__init__()

    stream = SimpleNamespace(name="now", wait_stream=lambda other: log.append(("waits for", other.name)))
    made = iter(range(100))
    cuda = torch.cuda
    monkeypatch.setattr(cuda, "current_stream", lambda device: stream)

    def new_stream(device, priority):
        assert priority == -1  # not of those that rows are copied on
        return SimpleNamespace(name=next(made), wait_stream=stream.wait_stream)

    monkeypatch.setattr(cuda, "Stream", new_stream)
    monkeypatch.setattr(cuda, "graph_pool_handle", lambda: next(made))
    monkeypatch.setattr(cuda, "CUDAGraph", object)
    monkeypatch.setattr(cuda, "graph", Recording)
    for name in ("device", "stream"):
        monkeypatch.setattr(cuda, name, nullcontext)

    def work():
        n_inside.append(1)
        assert sum(n_inside) == 1
        time.sleep(0.01)
        n_inside.pop()
        return "found"

    recorders = [GraphRecorder(torch.device("cuda:1")) for _ in range(4)]
    with ThreadPoolExecutor(4) as pool:
        for found in pool.map(lambda recorder: [recorder.record(work)[1] for _ in range(3)], recorders):
            assert found == ["found"] * 3
    assert len(log) == 12
    assert len(set(log)) == len({name for _, name in log}) == 4  # a pool and a stream for each recorder
    log.clear()
    assert recorders[0].record(work, runs_first=True)[1] == "found"
    own = log[-1][1]
    assert log[:2] == [("waits for", "now"), ("waits for", own)]


def test_a_recording_broken_off_leaves_the_stream_as_it_was(monkeypatch):
    """Torch does not where a capture cannot be ended; and its allocator may keep pointing at the graph."""
    now, own = (SimpleNamespace(wait_stream=lambda other: None) for _ in range(2))
    current = [now]

    class Broken(nullcontext):
        def __enter__(self):
            current[0] = own

        def __exit__(self, *exception):
            raise RuntimeError("capture was invalidated")

    monkeypatch.setattr(torch.cuda, "current_stream", lambda device: current[0])
    monkeypatch.setattr(torch.cuda, "set_stream", lambda stream: current.__setitem__(0, stream))
    monkeypatch.setattr(torch.cuda, "Stream", lambda device, priority: own)
    monkeypatch.setattr(torch.cuda, "graph_pool_handle", lambda: 0)
    monkeypatch.setattr(torch.cuda, "CUDAGraph", object)
    monkeypatch.setattr(torch.cuda, "graph", lambda graph, **options: Broken())
    monkeypatch.setattr(torch.cuda, "device", nullcontext)
    with pytest.warns(RuntimeWarning, match="capture was invalidated"):
        assert GraphRecorder(CPU).record(lambda: None) is None
    assert current == [now]
    assert len(_graph_recorder._abandoned) == 1
    other = GraphRecorder(CPU)
    assert other.has_failed
    assert other.record(lambda: pytest.fail("recorded")) is None
