"""Rows on their way to a device; CUDA's way with stand-ins for streams, which do everything at once."""

from contextlib import nullcontext
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from conftest import make_embeddings

from skcompressae._core._rows import unit_rows
from skcompressae._torch import _encode_graph, _step_graph
from skcompressae._torch._encode_graph import EncodeGraphs
from skcompressae._torch._staging import RowStream, download_blocks, upload
from skcompressae._torch._step_graph import StepGraphs
from skcompressae._torch._torch_engine import DeviceLosses
from skcompressae._torch._weights import StepSettings

CUDA = SimpleNamespace(type="cuda")


class Stream:
    """Notes who waits for what; copies are over when they return."""

    def __init__(self, log, name):
        self.log, self.name = log, name

    def wait_event(self, event):
        self.log.append((self.name, "waits for", event.name))


@pytest.fixture
def log(monkeypatch):
    """What streams and events were told, with torch's CUDA calls done on the CPU."""
    calls = []
    streams = {"compute": Stream(calls, "compute"), "copy": Stream(calls, "copy")}
    current = ["compute"]

    class Event:
        n_made = 0

        def __init__(self):
            Event.n_made += 1
            self.name = f"event {Event.n_made}"

        def record(self, stream):
            calls.append((streams[current[0]].name, "records", self.name))

        def synchronize(self):
            calls.append(("host", "waits for", self.name))

    class Inside(nullcontext):
        def __enter__(self):
            current[0] = "copy"

        def __exit__(self, *exception):
            current[0] = "compute"

    original = torch.empty
    monkeypatch.setattr(torch.cuda, "Event", Event)
    monkeypatch.setattr(torch.cuda, "Stream", lambda device: streams["copy"])
    monkeypatch.setattr(torch.cuda, "stream", lambda stream: Inside())
    monkeypatch.setattr(torch.cuda, "current_stream", lambda device: streams[current[0]])
    monkeypatch.setattr(
        torch, "empty", lambda *shape, device=None, pin_memory=False, **kinds: original(*shape, **kinds)
    )
    monkeypatch.setattr("skcompressae._core._threads._COPY_ROWS", (4, 4))
    return calls


def blocks_of(rows, device, how):
    stream = RowStream(rows, device, 10)
    for start in range(0, len(rows), 10):
        part = slice(start, min(start + 10, len(rows)))
        which = part if how == "slices" else np.arange(len(rows))[part]
        unit, norms = stream.fetch(which)
        yield unit.clone(), norms.clone()


@pytest.mark.parametrize("how", ["slices", "picks"])
@pytest.mark.parametrize("dtype", [np.float16, np.float32, np.float64])
@pytest.mark.parametrize("is_read_only", [True, False])
def test_rows_arrive_as_unit_rows(device, how, dtype, is_read_only):
    rows = make_embeddings(n_rows=37, dtype=dtype)
    rows.flags.writeable = not is_read_only
    units, norms = zip(*blocks_of(rows, torch.device(device), how), strict=True)
    expected = unit_rows(rows)
    np.testing.assert_allclose(torch.cat(units).cpu(), expected[0], rtol=3e-7, atol=1e-9)
    np.testing.assert_allclose(torch.cat(norms).cpu(), expected[1], rtol=1e-12)


@pytest.mark.parametrize("how", ["slices", "picks"])
@pytest.mark.parametrize("order", ["C", "F"])
def test_rows_pass_through_two_buffers_in_turn(log, how, order):
    rows = np.asarray(make_embeddings(n_rows=57), order=order)
    units, _ = zip(*blocks_of(rows, CUDA, how), strict=True)
    np.testing.assert_allclose(torch.cat(units), unit_rows(rows)[0], rtol=3e-7, atol=1e-9)
    # Of each of the six blocks: the host waits until its buffer was copied, the copy until its target was used.
    host = [event for who, what, event in log if (who, what) == ("host", "waits for")]
    copies = [event for who, what, event in log if (who, what) == ("copy", "records")]
    used = [event for who, what, event in log if (who, what) == ("compute", "records")]
    targets = [event for who, what, event in log if (who, what) == ("copy", "waits for")]
    assert len(host) == len(copies) == len(targets) == 6
    assert host[2:] == copies[:4]
    assert targets[2:] == used[2:6]  # the first two are recorded when the buffers are made
    assert [event for who, what, event in log if (who, what) == ("compute", "waits for")] == copies


def test_results_come_one_block_behind(log):
    made = []

    def work():
        for number in range(3):
            made.append(number)
            yield number, (torch.full((2,), number), torch.full((1,), 10 * number))

    for number, (first, second) in download_blocks(work(), CUDA):
        assert first.tolist() == [number] * 2
        assert second.tolist() == [10 * number]
        assert made[-1] == min(number + 1, 2)
    recorded = [event for who, what, event in log if what == "records"]
    assert [event for who, what, event in log if who == "host"] == recorded


def test_results_of_other_devices_come_at_once(device):
    found = list(download_blocks([("a", (torch.ones(2, device=device),))], torch.device(device)))
    assert found[0][0] == "a"
    np.testing.assert_array_equal(found[0][1][0], np.ones(2))
    assert not list(download_blocks([], torch.device(device)))


def test_uploads_are_copies(device):
    array = np.arange(3)
    tensor = upload(array, torch.device(device))
    array[0] = 9
    assert tensor.tolist() == [0, 1, 2]


def test_losses_are_fetched_when_asked_for(device):
    cosines = torch.tensor([0.5, 0.75], device=device)
    losses = DeviceLosses(cosines, torch.tensor([3, 0], device=device))
    assert losses.cosine == 0.5
    assert losses.cosine_wide == 0.75
    assert losses.loss((1.0, 0.5)) == pytest.approx(0.5 + 0.125)
    np.testing.assert_array_equal(losses.fired, [3, 0])


def test_steps_are_recorded_once_and_replayed(monkeypatch):
    """A graph does what was done while it was recorded, on the same tensors."""
    tape = []
    state = torch.zeros(1)

    class Graph:
        def replay(self):
            for work in self.recorded:
                work()

    class Recording(nullcontext):
        def __init__(self, graph, capture_error_mode):
            assert capture_error_mode == "thread_local"
            self.graph = graph
            super().__init__()

        def __enter__(self):
            tape.clear()

        def __exit__(self, *exception):
            self.graph.recorded = list(tape)

    n_taken = []

    def take_step(blocks, n_rows, rates, settings, share):
        n_taken.append(n_rows)
        blocks = list(blocks)
        cosines, fired = torch.zeros(2), torch.zeros(3, dtype=torch.int64)

        def work():
            state.add_(torch.cat(blocks).sum() * rates[0])
            cosines.fill_(float(state))
            fired.add_(1)

        if n_taken[-2:] == [n_rows, n_rows]:  # the second of a kind is recorded, and not taken
            tape.append(work)
        else:
            work()
        return cosines, fired

    monkeypatch.setattr(_step_graph.torch.cuda, "CUDAGraph", Graph)
    monkeypatch.setattr(_step_graph.torch.cuda, "graph", Recording)
    graphs = StepGraphs(take_step)
    settings = StepSettings(k=2, n_active=8, loss_weights=(1.0, 0.0), batch_size=4)
    expected, seen = 0.0, []
    for number in range(1, 6):
        expected += 4 * number * 0.5
        blocks = (torch.full((2, 1), float(number)) for _ in range(2))
        cosines, fired = graphs(blocks, 4, torch.tensor([0.5, 1.0]), settings, 1.0)
        assert cosines[0] == expected
        seen.append(fired)
    assert n_taken == [4, 4]
    assert [int(fired[0]) for fired in seen] == [1, 1, 2, 3, 4]  # copies: later steps leave them alone


def test_few_rows_are_recorded_where_they_come_often(monkeypatch):
    """A graph does what was done while it was recorded, on the same tensors, whatever rows these hold."""
    n_worked, tapes = [], []

    class Graph:
        def capture_begin(self, capture_error_mode):
            assert capture_error_mode == "thread_local"
            tapes.append(self)

        def capture_end(self):
            tapes.clear()

        def replay(self):
            self.again()

    def work(rows):
        found = torch.empty(len(rows)), rows.clone()
        n_worked.append(len(rows))

        def again():
            found[0].copy_(rows.sum(dim=1))
            found[1].copy_(rows)

        if tapes:
            tapes[0].again = again
        else:
            again()
        return found

    stream = SimpleNamespace(wait_stream=lambda other: None)
    for name in ("current_stream", "Stream"):
        monkeypatch.setattr(_encode_graph.torch.cuda, name, lambda device: stream)
    monkeypatch.setattr(_encode_graph.torch.cuda, "CUDAGraph", Graph)
    for name in ("device", "stream"):
        monkeypatch.setattr(_encode_graph.torch.cuda, name, nullcontext)
    graphs = EncodeGraphs(torch.device("cpu"))
    random_state = np.random.RandomState(0)
    for n_rows in [3] * 10 + [4, 3, 1, 2]:
        rows = random_state.standard_normal((n_rows, 5)).astype(np.float32)
        rows.flags.writeable = False
        sums, copies = graphs(rows, ("kind",), work)
        np.testing.assert_allclose(sums, rows.sum(axis=1), rtol=1e-5)
        np.testing.assert_array_equal(copies, rows)
    # eight as they are, one to prepare and one to record, for three and four rows alike; then those of other sizes
    assert n_worked == [3] * 8 + [4, 4] + [1, 2]
    graphs(rows, ("another kind",), work)
    assert n_worked[-1] == 2
