"""Audio files: formats, rates and channels become 16 kHz mono; what cannot be used is refused."""

from __future__ import annotations

import doctest
import os
import re
import stat
import sys
import tracemalloc
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from comparing import assert_equal_bits
from numpy.typing import NDArray

from npu_matmul.whisper import files
from npu_matmul.whisper.audio import WINDOW_SAMPLES, AudioError, speech_sample
from npu_matmul.whisper.files import AudioFile, open_audio, windows

soundfile = pytest.importorskip("soundfile")
pytest.importorskip("soxr")
SPEECH = speech_sample()


def read(path: Path) -> NDArray[np.float32]:
    return np.concatenate(list(open_audio(path).blocks()))


def tone(rate: int, seconds: float) -> NDArray[np.float64]:
    return 0.5 * np.sin(2 * np.pi * 440 / rate * np.arange(int(rate * seconds)))


# What is read


@pytest.mark.parametrize(("suffix", "subtype"), [("wav", "PCM_16"), ("flac", "PCM_16")])
def test_16_khz_mono_is_read_as_it_is(tmp_path: Path, suffix: str, subtype: str) -> None:
    path = tmp_path / f"a.{suffix}"
    soundfile.write(path, SPEECH, 16_000, subtype)
    audio = open_audio(path)
    assert (audio.seconds, audio.windows, audio.reader) == (len(SPEECH) / 16_000, 1, "libsndfile")
    assert_equal_bits(read(path), SPEECH)


@pytest.mark.parametrize("rate", [8_000, 11_025, 22_050, 44_100, 48_000])
@pytest.mark.parametrize("suffix", ["wav", "flac"])
def test_other_rates_are_resampled(tmp_path: Path, rate: int, suffix: str) -> None:
    path = tmp_path / f"a.{suffix}"
    soundfile.write(path, tone(rate, 25.3), rate)  # more than one block
    got = read(path)
    assert abs(len(got) - 16_000 * 25.3) <= 2
    inner = slice(1_000, -1_000)  # at both ends the filter sees silence
    np.testing.assert_allclose(got[inner], tone(16_000, 26)[: len(got)][inner], atol=2e-3)


def test_channels_are_averaged(tmp_path: Path) -> None:
    path = tmp_path / "a.wav"
    soundfile.write(path, np.stack([SPEECH, -SPEECH, SPEECH], axis=1), 16_000, "FLOAT")
    np.testing.assert_allclose(read(path), SPEECH / 3, atol=1e-7)


def test_8_khz_stereo(tmp_path: Path) -> None:
    path = tmp_path / "a.wav"
    soundfile.write(path, np.stack([tone(8_000, 3), tone(8_000, 3)], axis=1), 8_000)
    got = read(path)
    np.testing.assert_allclose(got[1_000:-1_000], tone(16_000, 3)[1_000:-1_000], atol=2e-3)


@pytest.mark.parametrize("subtype", ["PCM_U8", "PCM_24", "PCM_32", "FLOAT", "DOUBLE"])
def test_other_sample_types_are_read(tmp_path: Path, subtype: str) -> None:
    path = tmp_path / "a.wav"
    soundfile.write(path, SPEECH, 16_000, subtype)
    assert np.abs(read(path) - SPEECH).max() <= (1 / 128 if subtype == "PCM_U8" else 1e-6)


# Lengths that a header does not tell, or tells wrongly


def test_flac_of_unknown_length_is_read_to_its_end(tmp_path: Path) -> None:
    path = tmp_path / "a.flac"
    samples = np.tile(SPEECH, 5)
    soundfile.write(path, samples, 16_000)
    content = bytearray(path.read_bytes())
    content[21] &= 0xF0  # 36 bits of STREAMINFO: RFC 9639, section 8.2; 0 is unknown
    content[22:26] = bytes(4)
    path.write_bytes(content)
    audio = open_audio(path)
    assert (audio.seconds, audio.windows, audio.reader) == (None, None, "libsndfile")
    assert_equal_bits(read(path), samples)
    path.write_bytes(content[: len(content) // 2])
    with pytest.raises(AudioError, match="cannot be decoded"):
        read(path)


def write_mp3(path: Path, samples: NDArray[Any]) -> bytes:
    """Of variable bit rate; returns what is written after the frame that tells the length."""
    if "MP3" not in soundfile.available_formats():
        pytest.skip("this libsndfile writes no MP3")
    soundfile.write(path, samples, 16_000, format="MP3")
    content = path.read_bytes()
    return content[content.index(content[:2], 2) :]


def test_mp3_whose_header_counts_itself_is_whole(tmp_path: Path) -> None:
    path = tmp_path / "a.mp3"
    write_mp3(path, SPEECH)
    content = bytearray(path.read_bytes())
    count = content.index(b"Xing") + 8  # after its name and flags
    content[count + 3] += 2  # the encoder filled up a frame with silence, this is one more
    path.write_bytes(content)
    assert len(SPEECH) <= len(read(path)) < soundfile.info(path).frames


def test_mp3_that_does_not_tell_its_length_is_read_to_its_end(tmp_path: Path) -> None:
    path = tmp_path / "a.mp3"
    samples = np.concatenate([np.zeros(16_000), np.tile(SPEECH, 3)])  # begins at a low bit rate
    untold = write_mp3(path, samples)
    told = read(path)
    assert len(told) == len(samples)
    path.write_bytes(untold)
    assert soundfile.info(path).frames > 2 * len(samples)  # estimated from the first frame
    got = read(path)
    assert abs(len(got) - len(samples)) < 4 * 576  # whole frames, with the encoder's delay
    delay = int(np.argmax(np.abs(got) > 0.1) - np.argmax(np.abs(told) > 0.1))
    assert 0 < delay < 4 * 576
    inner = slice(20_000, len(told) - 4 * 576)
    np.testing.assert_allclose(got[delay:][inner], told[inner], atol=1e-6)


def test_mp3_cut_short_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "a.mp3"
    write_mp3(path, np.tile(SPEECH, 5))
    path.write_bytes(path.read_bytes()[:-20_000])
    with pytest.raises(AudioError, match=r"cut short: \d+ of \d+ samples were found"):
        read(path)


@pytest.mark.parametrize(
    ("whole", "data"), [(8, 0), (0x7FFFF024, 0x7FFFF000), (0xFFFFFFFF, 0xFFFFFFFF)]
)
def test_wav_of_a_pipe_is_read_to_its_end(tmp_path: Path, whole: int, data: int) -> None:
    path = tmp_path / "a.wav"
    soundfile.write(path, SPEECH, 16_000, "PCM_16")
    content = bytearray(path.read_bytes())
    assert content[36:40] == b"data"
    # libsndfile's of a file that was not closed; sox's and ffmpeg's when they write to a pipe
    content[4:8], content[40:44] = whole.to_bytes(4, "little"), data.to_bytes(4, "little")
    path.write_bytes(content)
    assert open_audio(path).seconds == len(SPEECH) / 16_000
    assert_equal_bits(read(path), SPEECH)


@pytest.mark.parametrize("suffix", ["wav", "aiff", "au", "ogg"])
def test_a_file_cut_short_is_refused_before_it_is_read(tmp_path: Path, suffix: str) -> None:
    path = tmp_path / f"a.{suffix}"
    soundfile.write(path, np.tile(SPEECH, 5), 16_000)
    open_audio(path)
    content = path.read_bytes()
    path.write_bytes(content[: int(0.9 * len(content))])
    with pytest.raises(AudioError, match=r"a\.\w+: cut short: .*copy the file again"):
        open_audio(path)


# Windows


@pytest.mark.parametrize("count", [1, WINDOW_SAMPLES - 1, WINDOW_SAMPLES, 2 * WINDOW_SAMPLES + 7])
@pytest.mark.parametrize("block", [999_999, 160_000, 77_777])
def test_windows_are_the_samples_and_zeros_at_the_end(count: int, block: int) -> None:
    samples = np.random.default_rng(count).standard_normal(count, np.float32)
    blocks = (samples[start : start + block] for start in range(0, count, block))
    found = list(windows(blocks))
    assert [real for _, real in found] == [
        min(WINDOW_SAMPLES, count - start) for start in range(0, count, WINDOW_SAMPLES)
    ]
    joined = np.concatenate([window for window, _ in found])
    assert len(joined) % WINDOW_SAMPLES == 0
    assert_equal_bits(joined[:count], samples)
    assert not joined[count:].any()


def test_windows_are_counted_before_they_are_read(tmp_path: Path) -> None:
    path = tmp_path / "a.flac"
    for seconds, count in ((0.01, 1), (30, 1), (30.01, 2)):
        soundfile.write(path, tone(8_000, seconds), 8_000)
        audio = open_audio(path)
        assert audio.windows == count == len(list(windows(audio.blocks())))


def test_a_frame_too_few_to_make_a_sample_makes_no_window() -> None:
    """30 s at 44.1 kHz are 1,323,000 frames."""
    for frames, count in ((1_323_000, 1), (1_323_001, 1), (1_323_002, 2)):
        assert AudioFile(Path("a.wav"), frames / 44_100, "libsndfile").windows == count


def test_three_hours_need_no_more_memory_than_a_few_windows(tmp_path: Path) -> None:
    path = tmp_path / "long.flac"
    with soundfile.SoundFile(path, "w", 8_000, 1) as file:
        minute = np.zeros(8_000 * 60, np.int16)
        for _ in range(180):
            file.write(minute)
    audio = open_audio(path)
    assert audio.seconds == 3 * 3600 and audio.windows == 360
    tracemalloc.start()
    count = sum(1 for _ in windows(audio.blocks()))
    _, peak_bytes = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert count == 360
    assert peak_bytes < 6 * WINDOW_SAMPLES * 4  # all of it would be 360


# What is refused


def test_what_is_not_audio_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))  # no ffmpeg
    path = tmp_path / "a.wav"
    path.write_text("hello")
    with pytest.raises(AudioError, match=r"not audio that libsndfile can read .*install ffmpeg"):
        open_audio(path)


def test_empty_files_and_audio_without_samples_are_refused(tmp_path: Path) -> None:
    path = tmp_path / "a.wav"
    path.touch()
    with pytest.raises(AudioError, match="the file is empty"):
        open_audio(path)
    soundfile.write(path, np.zeros(0), 16_000)
    with pytest.raises(AudioError, match="holds no samples"):
        read(path)


@pytest.mark.parametrize("value", [np.nan, np.inf])
def test_samples_that_are_not_finite_are_refused_with_their_time(
    tmp_path: Path, value: float
) -> None:
    samples = np.stack([tone(8_000, 30), tone(8_000, 30)], axis=1)
    samples[180_000, 1] = value
    soundfile.write(tmp_path / "a.wav", samples, 8_000, "FLOAT")
    with pytest.raises(AudioError, match=r"samples are NaN, .*the first, (nan|inf), at 22\.500 s"):
        read(tmp_path / "a.wav")


@pytest.mark.parametrize(
    ("value", "subtype", "said"), [(-1e20, "FLOAT", "-1e+20"), (1e300, "DOUBLE", "inf")]
)
def test_samples_that_are_too_loud_for_any_are_refused_with_their_time(
    tmp_path: Path, value: float, subtype: str, said: str
) -> None:
    samples = tone(8_000, 30)
    samples[100] = 2.0**31  # of 32-bit integers that were not scaled
    soundfile.write(tmp_path / "a.wav", samples, 8_000, subtype)
    read(tmp_path / "a.wav")
    samples[180_000] = value
    soundfile.write(tmp_path / "a.wav", samples, 8_000, subtype)
    with pytest.raises(AudioError, match=rf"the first, {re.escape(said)}, at 22\.500 s"):
        read(tmp_path / "a.wav")


def test_a_missing_or_unreadable_file_is_an_os_error(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError):
        open_audio(tmp_path / "absent.wav")
    with pytest.raises(IsADirectoryError):
        open_audio(tmp_path)


def test_a_pipe_is_refused(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "a.wav")
    with pytest.raises(AudioError, match=r"a\.wav: a pipe; a file is needed"):
        open_audio(tmp_path / "a.wav")


def test_flac_cut_short_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "a.flac"
    soundfile.write(path, SPEECH, 16_000)
    path.write_bytes(path.read_bytes()[:20_000])
    with pytest.raises(AudioError, match=r"cut short|cannot be decoded"):
        read(path)


def test_without_the_package_the_error_says_what_to_install(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "soundfile", None)
    with pytest.raises(ModuleNotFoundError, match=r"pip install 'npu-matmul\[whisper\]'"):
        open_audio(tmp_path / "a.wav")


# ffmpeg

FFMPEG = f"""#!{sys.executable}
# In ffmpeg's place: what is asked for, of a format that only it knows.
import sys
arguments = sys.argv[1:]
path = arguments[arguments.index("-i") + 1].removeprefix("file:")
wanted = ["-f", "f32le", "-ac", "1", "-ar", "16000", "-"]
assert arguments[-7:] == wanted and "-nostdin" in arguments, arguments
content = open(path, "rb").read()
if not content.startswith(b"ours"):
    sys.exit("[in#0 @ 0x1] moov atom not found\\nError opening input files: Invalid data")
if content.endswith(b"cut"):  # ffmpeg decodes what it can, and ends with 0
    print("[mov @ 0x1] partial file", "[aac @ 0x2] Invalid data", sep="\\n", file=sys.stderr)
try:
    sys.stdout.buffer.write(content[4:])
except BrokenPipeError:
    sys.exit(1)
"""


@pytest.fixture
def ffmpeg(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    folder = tmp_path / "bin"
    folder.mkdir()
    (folder / "ffmpeg").write_text(FFMPEG)
    (folder / "ffmpeg").chmod(stat.S_IRWXU)
    monkeypatch.setenv("PATH", str(folder) + os.pathsep + os.environ["PATH"])
    yield tmp_path


def test_what_libsndfile_does_not_know_goes_to_ffmpeg(ffmpeg: Path) -> None:
    path = ffmpeg / "-a.m4a"
    samples = np.tile(SPEECH, 4)
    path.write_bytes(b"ours" + samples.astype("<f4").tobytes())
    audio = open_audio(path)
    assert (audio.reader, audio.seconds, audio.windows) == ("ffmpeg", None, None)
    assert_equal_bits(read(path), samples)
    next(audio.blocks())  # and then no more: ffmpeg is ended


def test_what_ffmpeg_refuses_is_refused_in_its_words(ffmpeg: Path) -> None:
    path = ffmpeg / "a.m4a"
    path.write_bytes(b"not ours")
    with pytest.raises(AudioError, match=r"ffmpeg cannot read it \(moov atom not found\)"):
        read(path)
    path.write_bytes(b"ours" + np.array([0, np.nan], "<f4").tobytes())
    with pytest.raises(AudioError, match=r"samples are NaN"):
        read(path)
    path.write_bytes(b"ours")
    with pytest.raises(AudioError, match=r"holds no samples"):
        read(path)


def test_what_ffmpeg_finds_damaged_is_refused_though_it_decodes_the_rest(ffmpeg: Path) -> None:
    path = ffmpeg / "a.m4a"
    path.write_bytes(b"ours" + SPEECH.tobytes() + b"cut")
    with pytest.raises(AudioError, match=r"damaged, as ffmpeg says \(partial file\)"):
        read(path)


def test_docstring_examples_run() -> None:
    result = doctest.testmod(files)
    assert result.attempted > 0
    assert result.failed == 0
