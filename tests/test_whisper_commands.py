"""``npu-matmul encode`` and ``transcribe`` as a person uses them: output, files, exit codes."""

from __future__ import annotations

import multiprocessing
import re
import subprocess
import sys
import time
from concurrent.futures import ProcessPoolExecutor
from dataclasses import replace
from pathlib import Path
from zipfile import ZipFile

import numpy as np
import pytest
from click.testing import CliRunner, Result

pytest.importorskip("soundfile")
pytest.importorskip("safetensors")

from whisper_files import SMALL, write_audio, write_checkpoint

from npu_matmul import cli
from npu_matmul.host.attention import usable
from npu_matmul.whisper import commands, encode, spread
from npu_matmul.whisper.commands import _kind, _short


@pytest.fixture(scope="module")
def weights(tmp_path_factory: pytest.TempPathFactory) -> str:
    return str(write_checkpoint(tmp_path_factory.mktemp("weights") / "whisper"))


def run(*arguments: str) -> Result:
    return CliRunner().invoke(cli.app, list(arguments))


def words(result: Result) -> str:
    return " ".join(result.output.split())


def main(*arguments: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "npu_matmul", *arguments]
    return subprocess.run(command, capture_output=True, text=True, timeout=100, check=False)


# encode


def test_encode_writes_features_and_says_what_it_did(weights: str, tmp_path: Path) -> None:
    audio, output = write_audio(tmp_path / "a.wav", seconds=1), tmp_path / "features.npz"
    result = run(
        *("encode", str(audio), "--weights", weights, "--device", "emulated"),
        *("--precision", "int8", "--attention", "host", "-o", str(output)),
    )
    assert result.exit_code == 0, result.output
    assert np.load(output)["features"].shape == (1, 1500, 64)
    said = words(result)
    assert "a.wav 1.00 1 " in said and "real-time factor" in said
    for stage in ("read audio", "mel.transform", "attn.qkv", "mlp.2", "gelu", "everything else"):
        assert stage in said, stage
    host = "host bf16" if usable() else "host float32"
    assert f"computed on: emulated (12 products), {host} (4 products)" in said
    assert "launches: 12; bytes to device: " in said
    assert f"written: {output}" in result.output
    assert "attention in bf16" not in said  # nothing was to be decided
    assert "layers" in said and "RANDOM" not in said


def test_encode_says_why_attention_is_where_it_is(weights: str, tmp_path: Path) -> None:
    audio = str(write_audio(tmp_path / "a.wav", seconds=1))
    result = run("encode", audio, "--weights", weights, "--device", "emulated")
    assert result.exit_code == 0, result.output
    said = words(result)
    assert "attention in bf16 on the " in said and "ms on the NPU (modelled; up to" in said


def test_encode_with_random_weights_says_loudly_that_they_mean_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(encode.SIZES, "tiny", SMALL)
    audio = str(write_audio(tmp_path / "a.wav", seconds=1))
    result = run("encode", audio, "--random", "tiny", "--device", "cpu")
    assert result.exit_code == 0, result.output
    folder = tmp_path / "new" / "features"  # for one file, too, as a pattern may match one
    kept = run("encode", audio, "--random", "tiny", "--device", "cpu", "-o", str(folder))
    assert kept.exit_code == 0, kept.output
    assert str(np.load(folder / "a.npz")["weights"]) == (
        "random numbers in the shapes of tiny: the features mean nothing"
    )
    assert words(result).count("RANDOM WEIGHTS: a tiny encoder of seeded random numbers.") == 2
    assert "MEAN NOTHING" in words(result)
    assert "features were not written: give -o to keep them" in words(result)


def test_encode_takes_a_precision_per_projection(weights: str, tmp_path: Path) -> None:
    audio = str(write_audio(tmp_path / "a.wav", seconds=1))
    features = []
    for name, precision in (
        ("exact", ["bf16x3"]),
        ("int8", ["int8"]),
        ("mixed", ["int8", "conv*=bf16x3", "blocks.*=bf16x3"]),
    ):
        options = [item for value in precision for item in ("--precision", value)]
        output = str(tmp_path / f"{name}.npz")
        result = run(
            "encode", audio, "--weights", weights, "--device", "cpu", *options, "-o", output
        )
        assert result.exit_code == 0, result.output
        features.append(np.load(output)["features"])
    exact, int8, mixed = features
    assert np.array_equal(mixed, exact) and not np.array_equal(int8, exact)
    settings = encode.Settings(weights, None, "cpu", (("conv*", "bf16"), ("*", "int8")))
    again = replace(settings, precision=(*settings.precision, ("conv*", "bf16x3")))
    first, last = (encode.Pipeline(each).encoder.precisions for each in (settings, again))
    assert (first["conv1"], last["conv1"]) == ("int8", "bf16x3")
    assert last["conv2"] == "bf16x3" and last["blocks.0.mlp.0"] == "int8"
    refused = run("encode", audio, "--weights", weights, "--precision", "blocks.9.*=int8")
    assert refused.exit_code != 0 and "matches no product" in str(refused.exception)


def test_several_files_the_bad_ones_among_them(
    weights: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import soundfile

    monkeypatch.setenv("PATH", str(tmp_path))  # no ffmpeg
    good = write_audio(tmp_path / "good.flac", seconds=2, rate=8_000, channels=2)
    short = write_audio(tmp_path / "short.wav", seconds=0.01)
    (tmp_path / "text.wav").write_text("not audio")
    (tmp_path / "empty.wav").touch()
    soundfile.write(tmp_path / "nan.wav", np.array([0, np.nan] * 800), 16_000, "FLOAT")
    names = ["text.wav", good.name, "empty.wav", "nan.wav", "absent.wav", short.name]
    output = tmp_path / "features"
    result = run(
        *("encode", *(str(tmp_path / name) for name in names), "--weights", weights),
        *("--device", "cpu", "--processes", "1", "-o", str(output)),
    )
    assert result.exit_code == 1, result.output
    assert sorted(path.name for path in output.iterdir()) == ["good.npz", "short.npz"]
    bars = [line for line in result.output.splitlines() if "━" in line]
    assert [line.split()[0] for line in bars] == ["files", "layers", "short.wav"]  # the last one's
    assert np.load(output / "good.npz")["seconds"] == 2
    said = words(result)
    for name, reason in (
        ("text.wav", "not audio that libsndfile can read"),
        ("empty.wav", "the file is empty"),
        ("nan.wav", "samples are NaN, infinite or beyond"),
        ("absent.wav", "FileNotFoundError"),
    ):
        assert f"failed: {tmp_path / name}: {reason}" in said.replace("- ", "-"), (name, said)
        assert said.count(reason) == 1
    assert said.index("text.wav") < said.index("good.flac") < said.index("short.wav")


def test_an_unreadable_file_does_not_stop_the_others(
    weights: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    good, locked = (str(write_audio(tmp_path / name, seconds=1)) for name in ("a.wav", "b.wav"))
    honest = encode.open_audio

    def open_audio(path: str) -> object:
        if str(path) == locked:  # a test may run as root, who can read everything
            raise PermissionError(13, "Permission denied", path)
        return honest(path)

    monkeypatch.setattr(encode, "open_audio", open_audio)
    options = ["--weights", weights, "--device", "cpu", "--processes", "1"]
    result = run("encode", locked, good, *options)
    assert result.exit_code == 1
    assert "Permission denied" in words(result) and "a.wav 1.00 1 " in words(result)


def test_files_are_encoded_in_several_processes(weights: str, tmp_path: Path) -> None:
    audio = [str(write_audio(tmp_path / f"{name}.wav", seconds=1)) for name in "ab"]
    start = time.perf_counter()
    done = main(
        *("encode", *audio, str(tmp_path / "absent.wav"), "--weights", weights),
        *("--processes", "2", "-o", str(tmp_path / "out")),
    )
    wall_s = time.perf_counter() - start
    assert done.returncode == 1, done.stderr
    assert done.stderr.count("device 'auto'") <= 1  # each process is told which one it is
    assert "absent.wav: failed" in done.stdout and "files" in done.stdout
    assert "where the seconds of 2 processes went" in " ".join(done.stdout.split())
    took = re.search(r"2 of 3 files: 2\.00 s of audio in (\S+) s with loading, real", done.stdout)
    assert took is not None and 0 < float(took[1]) < wall_s
    features = [np.load(tmp_path / "out" / f"{name}.npz")["features"] for name in "ab"]
    assert np.array_equal(*features)


def peaks_bytes(audio: list[str], output: str) -> list[int]:
    """In a process of its own: the most memory that it ever had, after encoding each file."""
    encode.SIZES["tiny"] = replace(SMALL, n_mels=1, n_audio_layer=1)
    # half of the time; a window's features know of no other window
    encode.LogMel = lambda *_, **__: lambda samples: samples[:3000][np.newaxis]
    options = ["--random", "tiny", "--precision", "int8", "--device", "cpu", "-o", output]
    found = []
    for path in audio:
        cli.app(["encode", path, *options], standalone_mode=False)
        status = Path("/proc/self/status").read_text(encoding="ascii")
        found.append(1024 * int(status.split("VmHWM:")[1].split()[0]))
    return found


def test_three_hours_are_encoded_in_the_memory_of_two_minutes(tmp_path: Path) -> None:
    import soundfile

    audio, output = [str(tmp_path / f"{minutes}.flac") for minutes in (2, 180)], tmp_path / "f.npz"
    for path in audio:
        with soundfile.SoundFile(path, "w", 8_000, 1) as file:
            for _ in range(int(Path(path).stem)):
                file.write(np.zeros(8_000 * 60, np.int16))
    with ProcessPoolExecutor(1, multiprocessing.get_context("spawn")) as pool:
        short, long = pool.submit(peaks_bytes, audio, str(output)).result()
    with ZipFile(output) as archive, archive.open("features.npy") as features:
        assert np.lib.format.read_magic(features) == (1, 0)
        shape, _, dtype = np.lib.format.read_array_header_1_0(features)
    output.unlink()
    assert (shape, dtype) == ((360, 1500, 64), np.float32)
    # all samples would be 691 MB, all features 138 MB
    assert long - short < 20_000_000, (short, long)


def test_no_device_is_opened_here_for_a_cluster(monkeypatch: pytest.MonkeyPatch) -> None:
    def over_dask(settings: encode.Settings, jobs: list[encode.Job], _: str) -> object:
        assert settings.device == "auto"  # each worker's own
        return (encode.FileReport(job.audio, error="ValueError: told") for job in jobs)

    monkeypatch.setattr(spread, "over_dask", over_dask)
    monkeypatch.setattr(commands, "open_device", lambda name: pytest.fail("opened"))
    result = run("encode", "a.wav", "--random", "tiny", "--dask", "tcp://127.0.0.1:1")
    assert result.exit_code == 1 and "failed: a.wav: ValueError: told" in words(result)


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["a.wav"], "give --weights PATH, or --random SIZE"),
        (["a.wav", "--weights", "w", "--random", "tiny"], "give --weights PATH, or --random SIZE"),
        ([], "Missing argument 'AUDIO...'"),
        (["a.wav", "b.wav", "--random", "tiny", "-o", "x.npz"], "for several AUDIO, -o is a dir"),
        (["a.wav", "--random", "tiny", "-o", "x.csv"], "a name that ends in .npz, or a directory"),
        (["a.wav", "--random", "tiny", "-o", "no/x.npz"], "no: there is no such directory"),
        (["a/x.wav", "b/x.mp3", "--random", "tiny", "-o", "."], "two AUDIO would be written to x."),
        (["a.wav", "--random", "tiny", "--dask", "x:1", "--processes", "2"], "--dask for a clust"),
        (["a.wav", "--random", "tiny", "--device", "gpu"], "'gpu' is not one of 'auto', 'xrt'"),
    ],
)
def test_usage_errors_are_exit_code_2(
    arguments: list[str], said: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    result = run("encode", *arguments)
    assert result.exit_code == 2
    assert said in words(result)


def test_what_nothing_can_be_encoded_with_is_one_line_and_exit_code_2(tmp_path: Path) -> None:
    audio = str(write_audio(tmp_path / "a.wav", seconds=1))
    for arguments, said in (
        (["encode", audio, "--weights", str(tmp_path / "no")], "there is no such file or direct"),
        (["encode", audio, "--random", "huge"], "'huge' is not one of 'tiny', 'base'"),
        (["encode", audio, "--weights", "no", "--precision", "conv1=int9"], "no precision 'int9'"),
        (["transcribe", audio, "--weights", "x", "-o", "x.doc"], "ends in .txt, .srt, .vtt"),
        (["transcribe", audio, "--weights", "x", "-o", "no/x.txt"], "no: there is no such direct"),
    ):
        done = main(*arguments)
        assert done.returncode == 2
        assert said in " ".join(done.stderr.split())
        assert "Traceback" not in done.stderr


def test_names_are_shortened_to_fit_a_terminal() -> None:
    assert _short("/a/b/short.wav") == "short.wav"
    assert _short("a-very-long-name-of-a-recording.flac") == "a-very-long-…ng.flac"
    assert _kind("blocks.11.mlp.0") == "mlp.0" and _kind("mel.bank") == "mel.bank"
