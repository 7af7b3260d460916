"""A trace holds what was done, counted as the devices count it, in a file that others can read."""

from __future__ import annotations

import logging
import threading
import time
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import trace_format
from comparing import assert_equal_bits, product_int32, random_int8
from trace_format import Event, spans

import npu_matmul as package
from npu_matmul import TraceError, last_call, npu_matmul, pack_b, trace
from npu_matmul.device import LaunchFailed, NpuDevice, open_device
from npu_matmul.device.emulated import EmulatedDevice
from npu_matmul.kernel import Kernel, load_kernel
from npu_matmul.performance.product import predict
from npu_matmul.strategies import STRATEGIES
from npu_matmul.tiler import TileGrid
from npu_matmul.timeline import listening
from npu_matmul.timeline import trace as tracing
from npu_matmul.timeline.recording import Recording

HOST, ARRAY = "host", "emulated NPU (modelled time)"
A, B = random_int8(1, 150, 140), random_int8(2, 140, 530)


def named(events: list[Event], name: str) -> list[Event]:
    return [event for event in events if event["name"] == name]


def total(events: list[Event], key: str) -> int:
    return sum(event["args"][key] for event in events)


@pytest.mark.parametrize("strategy", STRATEGIES)
def test_what_a_trace_counts_is_what_the_device_counted(
    npu: NpuDevice, int8_kernel: Kernel, strategy: str, tmp_path: Path
) -> None:
    a, b = (A, B) if int8_kernel.grid.rows > 1 else (A[:40], B[:, :50])
    weights = pack_b(b, kernel=int8_kernel, device=npu)
    with trace(tmp_path / "out.json"), npu.record() as counters:
        for other in (b, weights):
            got = npu_matmul(
                a, other, dtype=np.int32, device=npu, kernel=int8_kernel, strategy=strategy
            )
            assert_equal_bits(got, product_int32(a, b))
    host = spans(trace_format.read(tmp_path / "out.json"), HOST)
    launches = named(host, f"launch {int8_kernel.name}")
    assert total(launches, "launches") == counters.launches > 1
    for way in ("to", "from"):
        syncs = named(host, f"sync {way} device")
        assert len(syncs) == getattr(counters, f"syncs_{way}_device")
        assert total(syncs, "bytes") == getattr(counters, f"bytes_{way}_device")
    assert total(named(host, "sync instructions"), "bytes") == counters.instruction_bytes
    calls = named(host, "npu_matmul")
    assert [call["args"]["strategy"] for call in calls] == [strategy] * 2
    assert calls[0]["args"]["A"] == list(a.shape)


@pytest.mark.parametrize("strategy", STRATEGIES)
def test_the_array_shows_every_transfer_and_kernel_call_it_made(
    kernel: Kernel, strategy: str, tmp_path: Path
) -> None:
    with EmulatedDevice() as device, trace(tmp_path / "out.json"):
        a, b = random_int8(3, 70, 90), random_int8(4, 90, 40)
        precision = None if kernel.types.a == "int8" else "bf16"
        operands = (a, b) if precision is None else (a.astype(np.float32), b)
        npu_matmul(*operands, device=device, kernel=kernel, strategy=strategy, precision=precision)
        counted = device.load(kernel).machine_counters
    found = trace_format.read(tmp_path / "out.json")
    transfers = named(spans(found, ARRAY, "shim"), "transfer")
    assert len(transfers) == counted.dma_tasks > 0
    assert total(transfers, "bytes") == counted.dma_bytes
    calls = Counter(event["name"] for event in spans(found, ARRAY, "core"))
    symbols = kernel.symbols.first, kernel.symbols.next
    assert sum(calls[symbol] for symbol in symbols) == counted.kernel_calls > 0
    overlay = f"{kernel.name} {kernel.variant}"
    launches = [e for e in spans(found, ARRAY, "launches") if e["name"] == overlay]
    assert [e["args"]["launch"] for e in launches] == [*range(1, counted.launches + 1)]
    ours = named(spans(found, HOST), f"launch {kernel.name}")
    assert [e["args"]["launch"] for e in ours] == [*range(1, counted.launches + 1)]


def test_stages_are_the_seconds_that_the_report_has(tmp_path: Path) -> None:
    for device in ("cpu", "emulated"):
        with trace(tmp_path / "out.json"):
            npu_matmul(A, B, device=device, strategy="sequential", kernel="matmul_64x512")
        found = spans(trace_format.read(tmp_path / "out.json"), HOST)
        assert last_call().seconds
        for stage, seconds in last_call().seconds.items():
            stages = named(found, stage)
            shown_s = sum(event["dur"] for event in stages) / 1e6
            assert shown_s == pytest.approx(seconds, abs=1e-9 * (1 + len(stages)))


def test_modelled_launches_stand_one_after_the_other_with_their_dispatch(tmp_path: Path) -> None:
    small = A[:20, :20]
    with trace(tmp_path / "out.json"):
        for kernel in ("matmul_16x16", "matmul_16x16", "matmul_64x512"):
            npu_matmul(small, small.T, device="emulated", kernel=kernel)
    found = spans(trace_format.read(tmp_path / "out.json"), ARRAY, "launches")
    names = [event["name"] for event in found]
    one = ["dispatch", "matmul_16x16 int8"]
    assert names == [*one, *one, "switch of overlays", "dispatch", "matmul_64x512 int8"]
    end = 0
    for event in found:
        assert trace_format.ns(event["ts"]) == end
        end += trace_format.ns(event["dur"])
    assert found[1]["dur"] == pytest.approx(found[3]["dur"], abs=0.0011)  # in whole ns


def test_variants_of_one_kernel_are_overlays_of_their_own(tmp_path: Path) -> None:
    small = A[:20, :20]
    with trace(tmp_path / "out.json"):
        for a in (small, small.astype(np.float32), small):
            npu_matmul(a, a.T, device="emulated", kernel="matmul_64x512")
    found = spans(trace_format.read(tmp_path / "out.json"), ARRAY, "launches")
    int8, bf16 = (["dispatch", f"matmul_64x512 {variant}"] for variant in ("int8", "bf16"))
    switch = "switch of overlays"
    assert [event["name"] for event in found] == [*int8, switch, *bf16, switch, *int8]
    assert found[2]["dur"] == pytest.approx(1.4e3)  # us


@pytest.mark.parametrize("strategy", STRATEGIES)
def test_modelled_launches_cost_what_the_performance_model_says(
    int8_kernel: Kernel, strategy: str, tmp_path: Path
) -> None:
    with trace(tmp_path / "out.json"):
        npu_matmul(A, B, device="emulated", kernel=int8_kernel, strategy=strategy)
    found = spans(trace_format.read(tmp_path / "out.json"), ARRAY, "launches")
    predicted = predict(TileGrid(int8_kernel, *A.shape, B.shape[1]), strategy)
    shown_s = sum(event["dur"] for event in named(found, "dispatch")) / 1e6
    assert shown_s == pytest.approx(predicted.array.launch_s, abs=1e-9 * len(found))


def test_the_clocks_are_told_apart(tmp_path: Path) -> None:
    with trace(tmp_path / "out.json"):
        npu_matmul(A, B, device="emulated")
    found = trace_format.read(tmp_path / "out.json")
    events = named(found["traceEvents"], "process_name")
    processes = {event["args"]["name"]: event["pid"] for event in events}
    assert ARRAY in processes
    for event in spans(found):
        assert event["cat"] == ("modelled" if event["pid"] == processes[ARRAY] else "measured")
    assert "nothing of them was measured" in found["otherData"]["modelled"]
    with trace(tmp_path / "out.json"):
        npu_matmul(A, B, device="cpu")
    assert "modelled" not in trace_format.read(tmp_path / "out.json")["otherData"]


def test_each_thread_has_a_track_of_its_own(tmp_path: Path) -> None:
    done: list[str] = []

    def work() -> None:
        for _ in range(3):
            npu_matmul(A, B, device="emulated")
        done.append(threading.current_thread().name)

    threads = [threading.Thread(target=work, name=f"caller {n}") for n in range(3)]
    with trace(tmp_path / "out.json"):
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    assert len(done) == 3
    found = trace_format.read(tmp_path / "out.json")
    assert sorted(trace_format.tracks(found, HOST)) == sorted(done)
    for name in done:
        assert len(named(spans(found, HOST, name), "npu_matmul")) == 3
    assert len(named(spans(found, ARRAY, "launches"), "dispatch")) == 9


def test_small_products_that_take_the_short_way_are_seen(tmp_path: Path) -> None:
    a, out = A[:16, :16].copy(), np.empty((16, 16), np.int8)
    weights = pack_b(A[:16, :16].copy(), device="cpu")
    with trace(tmp_path / "out.json"):
        npu_matmul(a, weights, out)
        npu_matmul(a, weights, out)
    assert len(named(spans(trace_format.read(tmp_path / "out.json")), "npu_matmul")) == 2


def test_a_failed_launch_is_shown_as_such_and_the_next_works(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    device, kernel = EmulatedDevice(), load_kernel("matmul_16x16")
    launch_all = type(device.load(kernel)).launch_all

    def without_sync(self: Any, launches: Any) -> None:
        launches = list(launches)
        for _, buffers in launches:
            buffers[0].memory.known[:] = False
        launch_all(self, launches)

    with trace(tmp_path / "out.json"):
        with monkeypatch.context() as patch:
            patch.setattr(type(device.load(kernel)), "launch_all", without_sync)
            with pytest.raises(LaunchFailed, match="never synced"):
                npu_matmul(A, B, device=device, kernel=kernel)
        assert_equal_bits(
            npu_matmul(A, B, device=device, kernel=kernel, dtype=np.int32), product_int32(A, B)
        )
    found = trace_format.read(tmp_path / "out.json")
    calls = named(spans(found, HOST), "npu_matmul")
    assert calls[0]["args"]["failed"] == "LaunchFailed"
    assert "failed" not in calls[1]["args"]
    device.close()


def test_a_chain_in_flight_overlaps_nothing_on_its_track(double: Any, tmp_path: Path) -> None:
    """Launches of a real NPU go on beside the thread: on tracks of their own."""
    recording = Recording()
    start = recording._origin_s
    for begin, end in ((0, 4), (1, 5), (5, 6), (4, 7), (7, 8)):
        recording.flight("launch", start + begin, start + end, {"launches": 1})
    tracing.write_json(recording, tmp_path / "out.json")
    found = trace_format.read(tmp_path / "out.json")
    tracks = [f"launches in flight {number}" for number in (1, 2, 3)]
    assert trace_format.tracks(found) == tracks
    assert [len(spans(found, HOST, track)) for track in tracks] == [3, 1, 1]


def test_tests_of_the_device_itself_are_one_span(
    double: Any, everything_built: None, tmp_path: Path
) -> None:
    """They are no caller's launches, and no counter has them."""
    with trace(tmp_path / "out.json"), open_device("xrt").record() as counters:
        npu_matmul(A, B, device="xrt", kernel="matmul_64x512")
    found = trace_format.read(tmp_path / "out.json")
    assert len(named(spans(found, HOST), "test of the device")) == 1
    launches = named(spans(found, HOST, "in flight"), "launch matmul_64x512")
    assert total(launches, "launches") == counters.launches
    assert not spans(found, "emulated")


def test_traces_do_not_nest_in_any_thread(tmp_path: Path) -> None:
    found: list[BaseException] = []

    def other() -> None:
        try:
            with trace(tmp_path / "other.json"):
                pass
        except TraceError as error:
            found.append(error)

    with trace(tmp_path / "out.json"):
        nested = r"out\.json is being recorded.* into .*inner\.json"
        with pytest.raises(TraceError, match=nested), trace(tmp_path / "inner.json"):
            pass
        thread = threading.Thread(target=other)
        thread.start()
        thread.join()
        npu_matmul(A, B, device="cpu")
    assert len(found) == 1
    assert len(named(spans(trace_format.read(tmp_path / "out.json")), "npu_matmul")) == 1
    assert sorted(path.name for path in tmp_path.iterdir()) == ["out.json"]


def test_an_error_in_the_block_leaves_a_whole_file_and_the_next_trace_works(
    tmp_path: Path,
) -> None:
    for _ in range(2):
        with pytest.raises(ZeroDivisionError), trace(tmp_path / "out.json"):
            npu_matmul(A, B, device="cpu")
            raise ZeroDivisionError
        assert listening.listener is None
        assert named(spans(trace_format.read(tmp_path / "out.json")), "npu_matmul")


def test_a_file_that_cannot_be_written_is_refused_before_anything_runs(tmp_path: Path) -> None:
    for path in (tmp_path / "nowhere" / "out.json", tmp_path):
        named_json = path if path.suffix else path / "folder.json"
        if not path.suffix:
            named_json.mkdir()
        refused = pytest.raises(OSError, match=r"the trace cannot be written to .*: ")
        with refused, trace(named_json):
            raise AssertionError("it was refused too late")
    assert listening.listener is None
    with pytest.raises(
        ValueError, match=r"out\.txt: a trace's name must end in \.json, \.json\.gz, \.html"
    ):
        trace(tmp_path / "out.txt")


def test_a_write_that_fails_is_told_but_hides_no_other_error(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    folder = tmp_path / "folder"
    folder.mkdir()
    told = pytest.raises(OSError, match="the trace cannot be written")
    with told, trace(folder / "out.json"):
        folder.rmdir()
    folder.mkdir()
    with pytest.raises(ZeroDivisionError), trace(folder / "out.json"):
        folder.rmdir()
        raise ZeroDivisionError
    assert "the trace cannot be written" in caplog.text  # at level ERROR
    with trace(tmp_path / "out.json"):
        pass
    assert spans(trace_format.read(tmp_path / "out.json")) == []


def test_what_had_begun_before_is_seen_from_the_beginning_on(tmp_path: Path) -> None:
    start_s = time.perf_counter() - 5
    with trace(tmp_path / "out.json"):
        listening.measured("long", start_s, time.perf_counter())
    (long,) = spans(trace_format.read(tmp_path / "out.json"))
    assert long["ts"] == 0
    assert long["dur"] < 5e6


def test_what_is_done_after_the_end_is_not_recorded(tmp_path: Path) -> None:
    with trace(tmp_path / "out.json") as recording:
        late = listening.span("late")
        late.__enter__()
    late.__exit__(None, None, None)
    assert recording.groups == [] or not any(t.names for t in recording.host.tracks)


def test_beyond_the_bound_spans_are_counted_not_kept(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    with trace(tmp_path / "all.json"):  # its stream is new, and its machine booted, only once
        npu_matmul(A, B, device="emulated", kernel="matmul_16x16")
    monkeypatch.setattr(tracing, "Recording", lambda: Recording(most_spans=300))
    with caplog.at_level(logging.WARNING), trace(tmp_path / "few.json") as few:
        npu_matmul(A, B, device="emulated", kernel="matmul_16x16")
    monkeypatch.undo()
    with trace(tmp_path / "all.json"):
        npu_matmul(A, B, device="emulated", kernel="matmul_16x16")
    kept, every = (trace_format.read(tmp_path / f"{name}.json") for name in ("few", "all"))
    assert len(spans(kept)) <= 300
    assert len(spans(kept)) + few.left_out == len(spans(every))
    assert kept["otherData"]["left out"].startswith(f"{few.left_out:,} spans")
    assert f"{few.left_out:,} spans were left out" in caplog.text
    assert "left out" not in every["otherData"]
    assert named(spans(kept, ARRAY, "shim"), "transfer")  # the fewest and most telling are kept


def test_a_compressed_trace_holds_the_same(tmp_path: Path) -> None:
    with trace(tmp_path / "out.json.gz"):
        npu_matmul(A, B, device="emulated", kernel="matmul_64x512")
    assert named(spans(trace_format.read(tmp_path / "out.json.gz"), HOST), "launch")


def test_the_name_in_the_package_is_the_function_whatever_was_imported() -> None:
    """A module of that name would take its place when it is imported."""
    assert callable(package.trace)
    assert package.trace is tracing.trace


def test_what_another_process_heard_joins_with_its_own_clocks(tmp_path: Path) -> None:
    """In parts: each begins where its process stood, and launches go on after those before."""
    mine, other = Recording(), Recording()
    other._origin_s = mine._origin_s + 2
    for _ in range(2):
        listening.listen(other)
        try:
            npu_matmul(A, B, device="emulated", kernel="matmul_64x512")
        finally:
            listening.listen(None)
        mine.join(other.take())
    assert other.take().groups[0].tracks[0].names == []
    tracing.write_json(mine, tmp_path / "out.json")
    found = trace_format.read(tmp_path / "out.json")
    calls = named(spans(found, HOST), "npu_matmul")
    assert len(calls) == 2
    assert min(call["ts"] for call in calls) >= 2e6
    launches = spans(found, "emulated NPU of process", "launches")
    assert [event["args"]["launch"] for event in launches] == [1, 1, 2, 2]
