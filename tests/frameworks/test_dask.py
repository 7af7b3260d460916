"""Files over the workers of a Dask cluster: one file per NPU at a time, failures per file."""

from __future__ import annotations

from collections.abc import Iterator
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from click.testing import CliRunner

distributed = pytest.importorskip("distributed")
pytest.importorskip("soundfile")

from whisper_files import write_audio, write_checkpoint

from npu_matmul import cli
from npu_matmul.whisper import spread
from npu_matmul.whisper.encode import Job, Settings
from npu_matmul.whisper.spread import over_dask


@pytest.fixture(scope="module")
def cluster(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Any]:
    """Two workers in processes of their own, each with one NPU, none with ffmpeg."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("PATH", str(tmp_path_factory.mktemp("nothing")))
        with distributed.LocalCluster(
            n_workers=2,
            threads_per_worker=2,
            resources={"NPU": 1},
            dashboard_address=":0",
            local_directory=str(tmp_path_factory.mktemp("dask")),
        ) as started:
            yield started


@pytest.fixture(scope="module")
def weights(tmp_path_factory: pytest.TempPathFactory) -> str:
    return str(write_checkpoint(tmp_path_factory.mktemp("weights") / "whisper"))


def test_files_are_encoded_on_the_workers(
    cluster: Any, weights: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in "abc":
        write_audio(tmp_path / f"{name}.wav", seconds=1)
    (tmp_path / "text.wav").write_text("not audio")
    monkeypatch.chdir(tmp_path)  # relative paths are made absolute: workers are elsewhere
    names = ["a.wav", "text.wav", "b.wav", "absent.wav", "c.wav"]
    result = CliRunner().invoke(
        cli.app,
        [
            *("encode", *names, "--weights", weights, "--device", "cpu", "-o", "out"),
            *("--dask", cluster.scheduler_address),
        ],
    )
    assert result.exit_code == 1, (result.output, result.exception)
    words = " ".join(result.output.split())
    assert "not audio that libsndfile can read" in words and "FileNotFoundError" in words
    table = words[words.index("real-time factor") :]
    assert sorted(names, key=table.index) == names  # in the order given
    features = [np.load(tmp_path / "out" / f"{name}.npz")["features"] for name in "abc"]
    assert features[0].shape == (1, 1500, 64)
    with distributed.Client(cluster) as client:
        assert set(client.run(encoders_kept).values()) == {0}
    assert np.array_equal(features[0], features[1]) and np.array_equal(features[0], features[2])


def encoders_kept() -> int:
    from npu_matmul.whisper import encode

    return len(encode._kept)


def test_settings_that_no_worker_can_use_fail_each_file(cluster: Any, tmp_path: Path) -> None:
    nothing = Settings(weights=str(tmp_path / "absent"), device="cpu")
    (report,) = over_dask(nothing, [Job("a.wav")], cluster.scheduler_address)
    assert report.error.startswith("CheckpointError") and "no such file" in report.error


def test_one_worker_encodes_one_file_at_a_time(cluster: Any, tmp_path: Path) -> None:
    jobs = [Job(f"{i}.wav") for i in range(6)]
    reports = list(
        over_dask(Settings(random="tiny"), jobs, cluster.scheduler_address, note_when_it_ran)
    )
    by_worker: dict[str, list[tuple[float, float]]] = {}
    for report in reports:
        worker, start, end = report.error.split(" ")
        by_worker.setdefault(worker, []).append((float(start), float(end)))
    assert sum(map(len, by_worker.values())) == 6
    for spans in by_worker.values():
        spans.sort()
        assert all(end <= start for (_, end), (start, _) in pairwise(spans))


def note_when_it_ran(settings: Settings, job: Job) -> Any:
    import time

    from distributed import get_worker

    from npu_matmul.whisper.encode import FileReport

    start = time.time()
    time.sleep(0.05)
    return FileReport(job.audio, error=f"{get_worker().address} {start} {time.time()}")


def test_workers_without_an_npu_are_refused_with_the_cure(tmp_path: Path) -> None:
    with (
        distributed.LocalCluster(
            n_workers=1, processes=False, dashboard_address=":0", local_directory=str(tmp_path)
        ) as started,
        pytest.raises(ValueError, match=r'none of the 1 workers .* --resources "NPU=1"'),
    ):
        list(over_dask(Settings(random="tiny"), [Job("a.wav")], started.scheduler_address))


def test_an_address_without_a_scheduler_is_an_os_error(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(spread, "CONNECT_S", 1)
    with pytest.raises(OSError, match=r"127\.0\.0\.1:1"):
        list(over_dask(Settings(random="tiny"), [Job("a.wav")], "tcp://127.0.0.1:1"))
