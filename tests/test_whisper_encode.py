"""Files to features: in windows, whatever befalls one file; in this process and in several."""

from __future__ import annotations

import doctest
import fcntl
import gc
import os
import re
import time
import weakref
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import trace_format
from comparing import assert_equal_bits

pytest.importorskip("soundfile")
pytest.importorskip("safetensors")

from whisper_files import TENSORS, write_audio, write_checkpoint

from npu_matmul import trace, whisper
from npu_matmul.device import DEVICE_VARIABLE, NpuDevice
from npu_matmul.host.attention import usable
from npu_matmul.host.scratch import lent
from npu_matmul.whisper import commands, encode, placement, spread
from npu_matmul.whisper.audio import WINDOW_SAMPLES, pad_or_trim, speech_sample
from npu_matmul.whisper.encode import FileReport, Job, Pipeline, Progress, Settings
from npu_matmul.whisper.files import open_audio
from npu_matmul.whisper.mel import log_mel_spectrogram
from npu_matmul.whisper.model import AudioEncoder
from npu_matmul.whisper.spread import over_processes


@pytest.fixture(scope="module")
def settings(tmp_path_factory: pytest.TempPathFactory) -> Settings:
    weights = write_checkpoint(tmp_path_factory.mktemp("weights") / "whisper")
    return Settings(weights=str(weights), device="cpu", precision=(("*", "int8"),))


@pytest.fixture(scope="module")
def pipeline(settings: Settings) -> Pipeline:
    return Pipeline(settings)


# One file


def test_features_are_the_encoders_of_each_window(pipeline: Pipeline, tmp_path: Path) -> None:
    audio = write_audio(tmp_path / "a.flac", seconds=70)
    output = tmp_path / "features.npz"
    report = pipeline.encode(Job(str(audio), str(output)))
    assert (report.error, report.windows, report.audio_s) == ("", 3, 70.0)
    encoder = AudioEncoder(TENSORS, device="cpu", precision="int8")
    samples = np.resize(speech_sample(), 70 * 16_000)
    with np.load(output) as found:
        assert set(found.files) == {"features", "seconds", "weights"}
        assert found["weights"] == pipeline.source and found["weights"].ndim == 0
        assert found["seconds"] == 70.0
        features = found["features"]
    assert features.shape == (3, 1500, 64) and features.dtype == np.float32
    for i in range(3):
        window = pad_or_trim(samples[i * WINDOW_SAMPLES :])
        assert_equal_bits(features[i], encoder(log_mel_spectrogram(window, device="cpu")))


def test_a_report_says_where_the_time_went_and_what_the_device_did(
    settings: Settings, npu: NpuDevice, tmp_path: Path
) -> None:
    audio = write_audio(tmp_path / "a.wav", seconds=1)
    on_npu = Settings(**{**vars(settings), "device": npu.name, "attention": "host"})
    report = Pipeline(on_npu).encode(Job(str(audio)))
    assert report.error == ""
    # two of the features, two convolutions, four of each layer; two of each head and layer
    host = "host bf16" if usable() else "host float32"
    assert report.products == {npu.name: 2 + 2 + 2 * 4, host: 2 * 2}
    assert report.counts["launches"] == 12
    assert report.counts["bytes_to_device"] > 0 and report.counts["bytes_from_device"] > 0
    assert {"read audio", "mel.transform", "conv1", "blocks.1.mlp.2", "gelu"} <= set(report.seconds)
    assert 0 < sum(report.seconds.values()) <= report.wall_s
    assert report.real_time_factor == report.wall_s


def test_progress_is_told_of_windows_and_layers(pipeline: Pipeline, tmp_path: Path) -> None:
    told: list[tuple[str, int, int | None]] = []
    progress = Progress(
        window=lambda done, of: told.append(("window", done, of)),
        layer=lambda done, of: told.append(("layer", done, of)),
    )
    pipeline.encode(Job(str(write_audio(tmp_path / "a.wav", seconds=31))), progress)
    layers = [("layer", 1, 2), ("layer", 2, 2)]
    windows = [("window", done, 2) for done in (0, 1, 2)]
    assert told == [windows[0], *layers, windows[1], *layers, windows[2], windows[2]]


@pytest.mark.parametrize("header", [None, 18])
def test_progress_ends_with_how_many_windows_there_were(
    pipeline: Pipeline, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, header: int | None
) -> None:
    audio = str(write_audio(tmp_path / "a.wav", seconds=31))
    opened = replace(open_audio(audio), seconds=None if header is None else 30 * header)
    monkeypatch.setattr(encode, "open_audio", lambda _: opened)
    told: list[tuple[int, int | None]] = []
    pipeline.encode(Job(audio), Progress(window=lambda done, of: told.append((done, of))))
    assert told == [(0, header), (1, header), (2, header), (2, 2)]


def test_a_hundredth_of_a_second_is_a_window(pipeline: Pipeline, tmp_path: Path) -> None:
    report = pipeline.encode(Job(str(write_audio(tmp_path / "a.wav", seconds=0.01))))
    assert (report.error, report.windows, report.audio_s) == ("", 1, 0.01)


def test_features_arrive_window_by_window(pipeline: Pipeline, tmp_path: Path) -> None:
    features = pipeline.features(write_audio(tmp_path / "a.wav", seconds=61))
    first, real = next(features)
    assert first.shape == (1500, 64) and real == WINDOW_SAMPLES
    assert [real for _, real in features] == [WINDOW_SAMPLES, 16_000]


def test_a_failure_writes_nothing_and_the_next_file_is_encoded(
    pipeline: Pipeline, tmp_path: Path
) -> None:
    import soundfile

    samples = np.tile(speech_sample(), 6)
    samples[-5] = np.nan  # found when a window has been encoded
    soundfile.write(tmp_path / "bad.wav", samples, 16_000, "FLOAT")
    output = tmp_path / "out" / "features.npz"
    output.parent.mkdir()
    output.write_bytes(b"of an earlier run")
    report = pipeline.encode(Job(str(tmp_path / "bad.wav"), str(output)))
    assert report.error.startswith("AudioError: ") and "NaN" in report.error
    assert list(output.parent.iterdir()) == [output]
    assert output.read_bytes() == b"of an earlier run"
    good = write_audio(tmp_path / "good.wav", seconds=1)
    assert pipeline.encode(Job(str(good), str(output))).error == ""
    assert np.load(output)["features"].shape == (1, 1500, 64)
    absent = pipeline.encode(Job(str(good), str(tmp_path / "absent" / "features.npz")))
    assert absent.error.startswith("FileNotFoundError")


def test_settings_need_weights_or_a_size() -> None:
    for both_or_none in (Settings(), Settings(weights="a.pt", random="tiny")):
        with pytest.raises(ValueError, match="either weights or random"):
            Pipeline(both_or_none)
    with pytest.raises(ValueError, match="there is no size 'huge'; known are: tiny, base"):
        Pipeline(Settings(random="huge"))


def test_random_weights_are_seeded(monkeypatch: pytest.MonkeyPatch) -> None:
    from whisper_files import SMALL

    monkeypatch.setitem(encode.SIZES, "tiny", SMALL)
    mel = np.zeros((80, 3000), np.float32)
    first, second = (Pipeline(Settings(random="tiny", device="cpu")) for _ in range(2))
    assert_equal_bits(first.encoder(mel), second.encoder(mel))


def test_the_lines_of_the_readme_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    readme = (Path(__file__).resolve().parent.parent / "README.md").read_text(encoding="utf-8")
    blocks = [block.split("```")[0] for block in readme.split("```python\n")[1:]]
    (example,) = (block for block in blocks if "load_encoder" in block)
    write_checkpoint(tmp_path / "whisper-base")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv(DEVICE_VARIABLE, "cpu")
    names = {"samples": speech_sample()}
    exec(example, names)
    assert names["features"].shape == (1500, 64)
    assert names["encoder"].precisions["conv2"] == "bf16x3"


@pytest.mark.parametrize("module", [commands, whisper])
def test_docstring_examples_run(module: Any) -> None:
    result = doctest.testmod(module)
    assert result.attempted > 0
    assert result.failed == 0


# Where attention is computed


def test_all_processes_compute_attention_where_it_was_decided_once(
    settings: Settings, monkeypatch: pytest.MonkeyPatch
) -> None:
    """On an NPU, where deciding takes how fast the host is at the moment."""
    host_s = iter([1.0, 1e-9])
    monkeypatch.setattr(placement, "measured_head_s", lambda *_: next(host_s))
    mixed = replace(
        settings,
        device="emulated",
        precision=(("*", "int8"), ("blocks.1.attn.wv", "bf16x3"), ("blocks.0.attn.qk", "bf16")),
    )
    once = encode.decided(mixed)
    assert [(one.precision, one.place) for one in once.decided] == [
        ("bf16", "device"),
        ("bf16x3", "host"),
    ]
    assert re.fullmatch(
        r"attention in bf16 on the device: a head takes 1000\.00 ms on the host \(measured\), "
        r"\d+\.\d\d ms on the NPU \(modelled; up to 1\.5 times that\)",
        str(once.decided[0]),
    )
    assert Pipeline(once).encoder.places == ["device", "host"]  # without measuring again
    assert encode.decided(replace(mixed, attention="host")).decided == ()
    host_s = iter([1.0])
    deep = replace(mixed, precision=(("blocks.31.mlp.0", "int8"),))  # only large has so many
    assert [one.precision for one in encode.decided(deep).decided] == ["bf16"]
    assert encode.decided(replace(mixed, device="cpu")).decided == ()


# What a process keeps


def test_a_process_keeps_one_pipeline_and_makes_another_when_its_weights_change(
    tmp_path: Path,
) -> None:
    from safetensors.numpy import load_file, save_file

    file = write_checkpoint(tmp_path / "whisper") / "model.safetensors"
    settings = Settings(weights=str(file.parent), device="cpu")
    before = file.stat()
    first = encode.pipeline(settings)
    assert encode.pipeline(settings) is first
    changed = {name: tensor + np.float32(1) for name, tensor in load_file(file).items()}
    save_file(changed, file)  # as large as before
    os.utime(file, ns=(before.st_atime_ns, before.st_mtime_ns + 1))
    second = encode.pipeline(settings)
    assert second is not first
    bias = first.encoder.conv1.bias
    assert_equal_bits(second.encoder.conv1.bias, bias + np.float32(1))
    assert encode.pipeline(settings) is second


def test_the_last_pipeline_goes_before_the_next_is_made_and_when_it_is_released(
    settings: Settings, monkeypatch: pytest.MonkeyPatch
) -> None:
    last = weakref.ref(encode.pipeline(settings))

    def make(settings: Settings) -> Any:
        gc.collect()
        assert last() is None
        return object()

    monkeypatch.setattr(encode, "Pipeline", make)
    encode.pipeline(replace(settings, mel_precision="bf16"))
    assert len(encode._kept) == 1
    with lent("any") as room:
        worked_in = weakref.ref(room)
    del room
    assert worked_in() is not None
    encode.release()
    assert not encode._kept and worked_in() is None


# Several processes


def encode_or_die(settings: Settings, job: Job) -> FileReport:
    """In a process of its own: dies of one file, tells its threads in the report of another."""
    if "deadly" in job.audio:
        os._exit(1)
    if "threads" in job.audio:
        return FileReport(job.audio, error=os.environ["OMP_NUM_THREADS"])
    return encode.encode_job(settings, job)


def test_files_are_spread_and_a_process_that_dies_costs_its_own_file(
    settings: Settings, tmp_path: Path
) -> None:
    good = [str(write_audio(tmp_path / f"{name}.wav", seconds=1)) for name in "ab"]
    bad = str(tmp_path / "absent.wav")
    names = [good[0], "deadly", bad, "threads", good[1]]
    jobs = [Job(name, str(tmp_path / f"{i}.npz")) for i, name in enumerate(names)]
    before = dict(os.environ)
    reports = {r.audio: r for r in over_processes(settings, jobs, 2, encode_or_die)}
    assert dict(os.environ) == before
    assert set(reports) == set(names)
    assert reports["deadly"].error == "the process that encoded it died"
    assert reports[bad].error.startswith("FileNotFoundError")
    assert int(reports["threads"].error) >= 1
    want = AudioEncoder(TENSORS, device="cpu", precision="int8")
    samples = pad_or_trim(np.resize(speech_sample(), 16_000))
    for i, name in ((0, good[0]), (4, good[1])):
        assert reports[name].error == ""
        features = np.load(tmp_path / f"{i}.npz")["features"][0]
        assert_equal_bits(features, want(log_mel_spectrogram(samples, device="cpu")))


def note_and_fail(settings: Settings, job: Job) -> FileReport:
    """In a process of its own: no pipeline can be made; each attempt leaves a file."""
    assert settings.weights is not None
    (Path(settings.weights) / job.audio).touch()
    raise ValueError("there is no precision 'int9'")


def test_what_no_process_can_use_is_raised_before_the_other_files(tmp_path: Path) -> None:
    jobs = [Job(f"{i}.wav") for i in range(40)]
    with pytest.raises(ValueError, match="no precision 'int9'"):
        list(over_processes(Settings(weights=str(tmp_path)), jobs, 2, note_and_fail))
    assert 1 <= len(list(tmp_path.iterdir())) <= 2


holding: list[int] = []


def need_all_memory(settings: Settings, job: Job) -> FileReport:
    """In a process of its own: there is memory for the pipeline of one process at a time."""
    assert settings.weights is not None
    if not holding:
        file = os.open(settings.weights, os.O_RDWR | os.O_CREAT)
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise MemoryError("no memory for an encoder") from None
        holding.append(file)
    time.sleep(0.05)
    return FileReport(job.audio, error=str(os.getpid()))


def test_a_process_without_memory_for_its_pipeline_costs_no_file(tmp_path: Path) -> None:
    jobs = [Job(f"{i}.wav") for i in range(60)]
    settings = Settings(weights=str(tmp_path / "memory"))
    reports = list(over_processes(settings, jobs, 2, need_all_memory))
    assert sorted(report.audio for report in reports) == sorted(job.audio for job in jobs)
    # the first, then one that does all after the other has failed
    assert {report.error.isdigit() for report in reports} == {True}
    assert len({report.error for report in reports}) <= 2


def test_no_error_takes_the_reports_of_other_files_away() -> None:
    jobs = [Job("a.wav"), Job("b.wav"), Job("c.wav")]
    reports = list(over_processes(Settings(), jobs, 1, all_but_b))
    assert [(report.audio, report.error) for report in reports] == [
        ("a.wav", ""),
        ("b.wav", "MemoryError: none left"),
        ("c.wav", ""),
    ]


def all_but_b(settings: Settings, job: Job) -> FileReport:
    if job.audio == "b.wav":
        raise MemoryError("none left")
    return FileReport(job.audio)


def die_or_tell_process(settings: Settings, job: Job) -> FileReport:
    if "deadly" in job.audio:
        os._exit(1)
    time.sleep(0.05)  # so that files are still waiting when the death is seen
    return FileReport(job.audio, error=str(os.getpid()))


def test_after_a_process_died_the_other_files_share_processes_again() -> None:
    jobs = [Job("deadly"), *(Job(f"{i}.wav") for i in range(20))]
    reports = list(over_processes(Settings(), jobs, 2, die_or_tell_process))
    by_name = {report.audio: report.error for report in reports}
    assert len(reports) == len(by_name) == len(jobs)
    assert by_name.pop("deadly") == "the process that encoded it died"
    # of the pool that broke, one for the file beside the deadly one, of the pool after that
    assert len(set(by_name.values())) <= 1 + 1 + 2


def test_a_trace_hears_the_processes_that_encode(
    settings: Settings, pipeline: Pipeline, tmp_path: Path
) -> None:
    names = [str(write_audio(tmp_path / f"{i}.wav", seconds=1)) for i in range(3)]
    start = time.perf_counter()
    with trace(tmp_path / "out.json"):
        reports = list(over_processes(settings, [Job(name) for name in names], 2))
    wall_us = (time.perf_counter() - start) * 1e6
    assert [report.error for report in reports] == [""] * 3
    assert all(isinstance(report, FileReport) for report in reports)
    found = trace_format.read(tmp_path / "out.json")
    processes = [e for e in found["traceEvents"] if e["name"] == "process_name"]
    assert 1 <= len(processes) <= 2  # the second may come too late for a file
    assert all("measured time" in process["args"]["name"] for process in processes)
    assert all(e["ts"] + e["dur"] <= wall_us for e in trace_format.spans(found))
    with trace(tmp_path / "one.json"):
        pipeline.encode(Job(names[0]))
    one = trace_format.read(tmp_path / "one.json")
    windows, of_one = (
        [event for event in trace_format.spans(each) if event["name"] == "conv1"]
        for each in (found, one)
    )
    assert len(of_one) > 0
    assert len(windows) >= 3 * len(of_one)  # making a pipeline may try its products out


def test_what_no_file_can_be_encoded_with_is_raised(tmp_path: Path) -> None:
    nothing = Settings(weights=str(tmp_path / "absent"), device="cpu")
    with pytest.raises(ValueError, match="there is no such file or directory"):
        list(over_processes(nothing, [Job("a.wav")], 1))


def test_cores_are_shared_among_processes(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: set(range(8)))
    monkeypatch.setenv("OMP_NUM_THREADS", "5")  # asked for: kept
    monkeypatch.delenv("OPENBLAS_NUM_THREADS", raising=False)
    with spread._threads_each(3):
        assert os.environ["OPENBLAS_NUM_THREADS"] == "2"
        assert os.environ["OMP_NUM_THREADS"] == "5"
    assert "OPENBLAS_NUM_THREADS" not in os.environ
