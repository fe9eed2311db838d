"""Rows on their way to a device; CUDA's way with stand-ins for streams, which do everything at once."""

from contextlib import nullcontext
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from conftest import make_embeddings

from skcompressae._core._rows import unit_rows
from skcompressae._torch._staging import RowStream, download_blocks, tensor_of, upload, wait_for_queued
from skcompressae._torch._torch_engine import DeviceLosses

CUDA = SimpleNamespace(type="cuda")
# older torch says so where there is none
pytestmark = pytest.mark.filterwarnings("ignore:User provided device_type of 'cuda'")


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
    monkeypatch.setattr(torch.cuda, "Stream", lambda device, priority: streams["copy"])
    monkeypatch.setattr(torch.cuda, "stream", lambda stream: Inside())
    monkeypatch.setattr(torch.cuda, "current_stream", lambda device: streams[current[0]])

    def empty(*shape, device, pin_memory=False, **kinds):
        assert device == ("cpu" if pin_memory else CUDA)
        return original(*shape, **kinds)

    monkeypatch.setattr(torch, "empty", empty)
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
@pytest.mark.parametrize("dtype", [np.float16, np.float32, np.float64, np.int8, np.uint8, np.int64])
@pytest.mark.parametrize("is_read_only", [True, False])
def test_rows_arrive_as_unit_rows(device, how, dtype, is_read_only):
    rows = np.abs(10 * make_embeddings(n_rows=37)).astype(dtype)
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


def test_results_are_waited_for_on_the_stream_that_copied_them(log):
    """Whoever takes a block may make another stream the current one, or queue work that is long in coming."""

    def work():
        for number in range(3):
            log.append(("work", "is queued", number))
            yield number, (torch.full((2,), number),)

    for number, _ in download_blocks(work(), CUDA):
        log.append(("caller", "has", number))
    queued = [place for place, (who, *_) in enumerate(log) if who == "work"]
    assert [log[place + 1][:2] for place in queued] == [("compute", "records")] * 3


def test_what_is_queued_is_waited_for(log):
    wait_for_queued(torch.device("cpu"))
    assert log == []
    wait_for_queued(CUDA)
    assert log == [("compute", "records", log[0][2]), ("host", "waits for", log[0][2])]


def test_results_of_other_devices_come_at_once(device):
    found = list(download_blocks([("a", (torch.ones(2, device=device),))], torch.device(device)))
    assert found[0][0] == "a"
    np.testing.assert_array_equal(found[0][1][0], np.ones(2))
    assert not list(download_blocks([], torch.device(device)))


def test_buffers_on_the_device_are_counted(log):
    for n_rows, n_buffered in ((57, 10), (7, 7)):
        stream = RowStream(make_embeddings(n_rows=n_rows), CUDA, 10)
        assert stream.staged_bytes == 2 * n_buffered * 24 * 4
        stream.fetch(slice(0, 5))
        assert sum(slot.on_device.nbytes for slot in stream._slots) == stream.staged_bytes


@pytest.mark.parametrize("turned", [lambda array: array[::-1], np.asfortranarray, np.array], ids=["-", "F", "C"])
def test_arrays_of_any_layout_become_tensors(turned):
    array = turned(np.arange(12, dtype=np.float32).reshape(4, 3))
    for is_writeable in (True, False):
        array.setflags(write=is_writeable)
        np.testing.assert_array_equal(tensor_of(array), array)


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
