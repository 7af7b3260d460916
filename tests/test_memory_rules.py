"""What fits and what does not: the numbers of designs that others have measured, and the banks."""

from __future__ import annotations

import pytest
from broken_designs import RTP, STACK_OF_TWO
from golden import changed
from rule_designs import GOOD, found_in, mel_frames, one_core, only

from npu_matmul.memory_map import SCHEMES, STACK, memory_map
from npu_matmul.mlir.elaborate import overlay_of_text
from npu_matmul.overlay import Tile

KIB = 1024
CORE = Tile(0, 2)
INT8 = {"a": "64x128xi8", "b": "128x64xi8"}


def end_of(text: str) -> int:
    return max(r.end for r in memory_map(overlay_of_text(text))[CORE])


def test_a_64x512_tile_of_b_does_not_fit_one_core() -> None:
    """136 KiB, even single-buffered."""
    text = one_core({"a": "64x64xbf16", "b": "64x512xbf16"}, {"c": "64x512xbf16"}, {}, stack=2048)
    single = text.replace("2 : i32)", "1 : i32)")
    assert end_of(single) - 2048 == 136 * KIB
    broken = only([v for v in found_in(single) if v.rule == "memory"])
    assert "141,312 B needed where 65,536 B are, 75,776 B too many" in broken.found
    assert broken.cure == "make the elements smaller"


def test_int8_64x128x64_overflows_by_3328_bytes_with_two_buffers_for_c() -> None:
    broken = only(found_in(one_core(INT8, {"c": "64x64xi32"}, {}, stack=3328)))
    assert broken.rule == "memory"
    assert "68,864 B needed where 65,536 B are, 3,328 B too many: stack 3,328 B" in broken.found
    assert broken.cure == "give @a depth 1 there, which saves 8,192 B"


def test_int8_64x128x64_fits_with_one_buffer_for_c() -> None:
    text = one_core(INT8, {"c": "64x64xi32"}, {"c": 1}, stack=3328)
    assert found_in(text) == []
    assert end_of(text) == 0xCD00


@pytest.mark.parametrize("scheme", SCHEMES)
def test_int8_64x128x64_with_int8_results_fits_under_both_schemes(scheme: str) -> None:
    assert found_in(one_core(INT8, {"c": "64x64xi8"}, {}, stack=3328), scheme) == []


@pytest.mark.parametrize(
    ("frames", "depth", "needed"),
    [(10, 2, 18_624), (20, 2, 36_224), (30, 2, 53_824), (30, 1, 27_424), (36, 2, 64_384)],
)
def test_batches_of_mel_frames_that_fit(frames: int, depth: int, needed: int) -> None:
    assert end_of(mel_frames(frames, depth)) == needed
    assert found_in(mel_frames(frames, depth)) == []


def test_36_is_the_largest_batch_of_mel_frames() -> None:
    def fits(frames: int) -> bool:
        return all(v.rule != "memory" for v in found_in(mel_frames(frames, 2)))

    assert [frames for frames in range(1, 60) if fits(frames)] == [*range(1, 37)]


def test_100_mel_frames_are_refused_and_the_map_says_why() -> None:
    text = mel_frames(100, 2)
    broken = only(found_in(text))
    assert broken.rule == "memory"
    assert "177,024 B needed where 65,536 B are, 111,488 B too many" in broken.found
    assert "stack 1,024 B, frames_cons 2 x 80,000 B, mel 2 x 8,000 B" in broken.found
    assert "with single buffers it would still be 89,024 B" in broken.cure
    assert memory_map(overlay_of_text(text))[CORE] == [
        (STACK, 0, 1024),
        ("frames_cons_buff_0", 1024, 80_000),
        ("frames_cons_buff_1", 81_024, 80_000),
        ("mel_buff_0", 161_024, 8_000),
        ("mel_buff_1", 169_024, 8_000),
    ]


def test_several_single_buffers_are_advised_where_one_is_not_enough() -> None:
    kinds = {"a": "20000xi8"}, {"c": "20000xi8"}
    assert found_in(one_core(*kinds, {"a": 1}, stack=5536)) == []
    assert "saves 20,000 B" in only(found_in(one_core(*kinds, {}, stack=5536))).cure
    assert only(found_in(one_core(*kinds, {}, stack=2048))).cure == (
        "give @a depth 1 there, which saves 20,000 B"
    )
    broken = only(found_in(one_core(*kinds, {}, stack=20480)))
    assert broken.cure == "single-buffer its FIFOs, which leaves 60,480 B"


# Banks


def test_a_buffer_larger_than_a_bank_has_no_room() -> None:
    text = one_core({"a": "20000xi8"}, {"c": "64xi8"}, {"a": 1}, stack=2048)
    assert found_in(text) == []
    broken = only(found_in(text, "bank-aware"))
    assert broken.rule == "memory"
    assert broken.found == "no bank has room for a_cons_buff_0 of 20,000 B"
    assert "banks are 16,384 B and no buffer crosses one" in broken.cure


def test_a_buffer_may_fill_a_bank() -> None:
    assert found_in(one_core({"a": "16384xi8"}, {"c": "64xi8"}, {"a": 1}, 2048), "bank-aware") == []


def test_a_stack_may_not_cross_a_bank() -> None:
    text = one_core({"a": "64xi8"}, {"c": "64xi8"}, {}, stack=16_416)
    assert found_in(text) == []
    broken = only(found_in(text, "bank-aware"))
    assert broken.found == "(stack) reaches from bank 0 into bank 1"


def test_a_buffer_pinned_below_what_its_bank_holds_has_no_room() -> None:
    text = changed(GOOD, (RTP, RTP.replace("1024", "512")))
    broken = only(found_in(text, "bank-aware"))
    assert broken.found == "rtp is pinned at 512, where its bank is taken"


def test_a_pinned_buffer_can_misalign_what_follows() -> None:
    broken = only(found_in(changed(GOOD, (RTP, RTP.replace("1024", "1028")))))
    assert broken.rule == "alignment"
    assert broken.cure.endswith("of what stands before them: rtp pinned at 1,028")


def test_the_cure_names_only_what_stands_in_that_core() -> None:
    text = changed(GOOD, (RTP, RTP.replace("1024", "1028")))
    text = changed(text, (STACK_OF_TWO, STACK_OF_TWO + " {stack_size = 1032 : i32}"))
    one, two = found_in(text)
    assert (one.place, two.place) == ("core (0, 2)", "core (0, 3)")
    assert two.cure.endswith("of what stands before them: stack of 1,032 B")


def test_a_stack_can_misalign_what_follows() -> None:
    broken = only(found_in(one_core({"a": "64xi8"}, {"c": "64xi8"}, {}, stack=2056)))
    assert broken.found.startswith("not at a multiple of 32 B: c_buff_0 at 2,056, c_buff_1 at 2,1")
    assert broken.cure.endswith("of what stands before them: stack of 2,056 B")
