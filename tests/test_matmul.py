"""``npu_matmul`` against ``np.matmul``: every device and strategy, bit for bit."""

from __future__ import annotations

import array
import copy
import dataclasses
import doctest
import pickle
from collections.abc import Callable
from importlib import import_module
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from comparing import ON_A_REAL_NPU, assert_equal_bits, clipped_int8, product_int32, random_int8
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from npu_matmul import PackedMatrix, choose, last_call, npu_matmul, open_device, pack_b
from npu_matmul.call import Call
from npu_matmul.device import DeviceError, NpuDevice
from npu_matmul.kernel import CoreGrid, KernelNotBuilt, UnknownKernel, load_kernel
from npu_matmul.strategies import STRATEGIES

KERNEL = load_kernel("matmul_16x16")
ROUTES: list[tuple[str, str | None]] = [("cpu", None), *(("emulated", s) for s in STRATEGIES)]
ON_XRT = [pytest.param("xrt", strategy, marks=pytest.mark.npu) for strategy in STRATEGIES]
every_route = pytest.mark.parametrize(("device", "strategy"), [*ROUTES, *ON_XRT])
every_device = pytest.mark.parametrize("device", ["cpu", "emulated", ON_A_REAL_NPU])

POWERS = [n + d for n in (16, 32, 64, 128) for d in (-1, 0, 1)]
SHAPES = {
    "small squares": [(n, n, n) for n in range(1, 11)],
    "powers of two and their neighbours": [(n, n, n) for n in POWERS],
    "mixed neighbours": [(15, 17, 33), (33, 16, 15), (16, 31, 65), (65, 1, 16), (1, 64, 1)],
    "odd triples": [(3, 5, 7), (17, 33, 9), (99, 3, 55), (1, 201, 1), (101, 1, 103), (1, 37, 67)],
    "deep": [(3, 5000, 5)],
}


@pytest.mark.parametrize(
    "module", ["npu_matmul", *(f"npu_matmul.{m}" for m in ("matmul", "operands", "choose"))]
)
def test_the_docstring_examples_hold(module: str) -> None:
    assert doctest.testmod(import_module(module)).failed == 0


@every_route
@pytest.mark.parametrize("shapes", SHAPES.values(), ids=SHAPES)
def test_accumulators_equal_numpys(
    device: str, strategy: str | None, shapes: list[tuple[int, int, int]]
) -> None:
    for m, k, n in shapes:
        a, b = random_int8(m, m, k), random_int8(n + 1, k, n)
        a[0], b[:, -1] = -128, -128
        got = npu_matmul(a, b, dtype=np.int32, device=device, strategy=strategy)
        assert_equal_bits(got, product_int32(a, b))
        assert_equal_bits(npu_matmul(a, b, device=device, strategy=strategy), clipped_int8(a, b))


@settings(max_examples=80, deadline=None)
@given(
    route=st.sampled_from(ROUTES),
    shape=st.tuples(*[st.integers(0, 50)] * 3),
    stacks=st.sampled_from([((), ()), ((2,), ()), ((), (3,)), ((2, 1), (3,)), ((0,), (1,))]),
    seed=st.integers(0, 2**32 - 1),
)
def test_any_shape_equals_numpys(
    route: tuple[str, str | None],
    shape: tuple[int, int, int],
    stacks: tuple[tuple[int, ...], tuple[int, ...]],
    seed: int,
) -> None:
    m, k, n = shape
    a, b = random_int8(seed, *stacks[0], m, k), random_int8(seed + 1, *stacks[1], k, n)
    got = npu_matmul(a, b, dtype=np.int32, device=route[0], strategy=route[1])
    assert_equal_bits(got, product_int32(a, b))


OPERANDS = [
    ((5,), (5,)),
    ((5,), (5, 3)),
    ((4, 5), (5,)),
    ((2, 4, 5), (5,)),
    ((5,), (2, 5, 3)),
    ((2, 4, 5), (5, 3)),
    ((2, 1, 4, 5), (3, 5, 2)),
    ((4, 5), (2, 3, 5, 2)),
    ((0, 5), (5, 3)),
    ((4, 0), (0, 3)),
    ((4, 5), (5, 0)),
    ((0,), (0,)),
    ((2, 4, 0), (0, 3)),
    ((2, 0, 5), (2, 5, 3)),
    ((0, 4, 5), (5, 3)),
]


@every_device
@pytest.mark.parametrize(("a_shape", "b_shape"), OPERANDS)
def test_stacks_vectors_and_empty_operands_are_treated_as_numpy_does(
    device: str, a_shape: tuple[int, ...], b_shape: tuple[int, ...]
) -> None:
    a, b = random_int8(1, *a_shape), random_int8(2, *b_shape)
    got = npu_matmul(a, b, dtype=np.int32, device=device)
    want = np.matmul(a.astype(np.int32), b.astype(np.int32))
    assert type(got) is type(want)
    assert_equal_bits(got, want)
    assert_equal_bits(npu_matmul(a, b, device=device), clipped_int8(a, b))


@every_device
@pytest.mark.parametrize(
    ("a_stack", "b_stack", "products"),
    [
        ((100,), (1,), 1),
        ((2, 3), (1, 1), 1),
        ((2, 3), (3,), 3),
        ((3, 2), (3, 1), 3),
        ((3, 1), (2,), 2),
        ((2, 1, 3), (4, 1), 4),
        ((), (3,), 3),
        ((0,), (1,), 0),
        ((1,), (0,), 0),
    ],
)
def test_each_matrix_of_a_stack_b_is_packed_once_for_all_rows_that_it_multiplies(
    device: str,
    a_stack: tuple[int, ...],
    b_stack: tuple[int, ...],
    products: int,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    counted: list[int] = []
    done = Call.matrix_product

    def counting(call: Call, a: Any, b: Any, out: Any = None) -> Any:
        counted.append(a.size)
        return done(call, a, b, out)

    monkeypatch.setattr(Call, "matrix_product", counting)
    a, b = random_int8(1, *a_stack, 5, 7), random_int8(2, *b_stack, 7, 3)
    want = product_int32(a, b)
    assert_equal_bits(npu_matmul(a, b, dtype=np.int32, device=device), want)
    assert np.count_nonzero(counted) == products
    if device == "emulated" and products:
        assert last_call().launches == products
    swapped = np.swapaxes(np.swapaxes(b, -1, -2).copy(), -1, -2)
    out = np.full(want.shape[::-1], 7, np.int32).T
    assert npu_matmul(a, swapped, out, dtype=np.int32, device=device) is out
    assert_equal_bits(np.ascontiguousarray(out), want)


LAYOUTS: dict[str, Callable[[NDArray[np.int8]], NDArray[np.int8]]] = {
    "Fortran order": np.asfortranarray,
    "reversed": lambda x: x[::-1, ::-1],
    "every second": lambda x: np.repeat(x, 2, axis=1)[:, ::2],
    "repeated row": lambda x: np.broadcast_to(x[:1], x.shape),
    "other byte order": lambda x: x.view(x.dtype.newbyteorder()),
    "unaligned": lambda x: np.frombuffer(b"?" + x.tobytes(), np.int8, offset=1).reshape(x.shape),
}


@every_device
@pytest.mark.parametrize("layout", LAYOUTS)
def test_operands_of_any_memory_layout_give_the_same_and_stay_as_they_are(
    device: str, layout: str
) -> None:
    a, b = LAYOUTS[layout](random_int8(1, 32, 48)), LAYOUTS[layout](random_int8(2, 48, 16))
    before = a.tobytes(), b.tobytes()
    got = npu_matmul(a, b, dtype=np.int32, device=device)
    assert_equal_bits(got, product_int32(a, b))
    assert (a.tobytes(), b.tobytes()) == before
    assert not np.shares_memory(got, a)


def test_what_numpy_turns_into_int8_arrays_is_an_operand() -> None:
    rows = [array.array("b", [1, -2]), array.array("b", [127, 3])]
    b = memoryview(array.array("b", [4, -128]))
    assert npu_matmul([np.asarray(r) for r in rows], b, device="cpu").tolist() == [127, 124]


@every_route
def test_accumulators_beyond_int32_wrap_as_numpys_do(device: str, strategy: str | None) -> None:
    depth = 140_000 if strategy != "sequential" else 131_073
    a, b = np.full((1, depth), -128, np.int8), np.full((depth, 2), -128, np.int8)
    b[7, 1] = 127
    got = npu_matmul(a, b, dtype=np.int32, device=device, strategy=strategy)
    assert got[0, 0] == (16384 * depth) - 2**32 < 0
    assert_equal_bits(got, product_int32(a, b))


@pytest.mark.parametrize(
    ("options", "error", "message"),
    [
        ({"precision": "bf16"}, ValueError, "leave it out"),
        ({"on_error": "ignore"}, ValueError, "'raise' and 'cpu'"),
        ({"strategy": "fastest"}, ValueError, "sequential, output_tile, batched"),
        ({"device": "gpu"}, ValueError, "auto, xrt, emulated, cpu"),
        ({"kernel": "matmul_9x9"}, UnknownKernel, "matmul_16x16"),
    ],
)
def test_after_a_refused_call_the_next_one_works(
    options: dict[str, Any], error: type[Exception], message: str
) -> None:
    a = random_int8(1, 20, 20)
    with pytest.raises(error, match=message):
        npu_matmul(a, a, **{"device": "emulated", **options})
    assert_equal_bits(npu_matmul(a, a, device="emulated"), clipped_int8(a, a))


def write_kernel(place: Path, name: str, size: int, source: bool = True) -> None:
    text = (KERNEL.source.parent / "kernel.toml").read_text()
    (place / name).mkdir()
    (place / name / "kernel.toml").write_text(text.replace(" = 16", f" = {size}"))
    if source:
        (place / name / KERNEL.source.name).write_text("")


def test_the_kernel_of_the_least_modelled_time_is_chosen_and_the_report_says_why(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name, size, source in [("bare", 8, False), ("exact", 24, True)]:
        write_kernel(tmp_path, name, size, source)
    monkeypatch.setenv("NPU_MATMUL_KERNELS", str(tmp_path))
    for shape, chosen in [((24, 24), "exact"), ((5, 9), "matmul_16x16")]:
        a = random_int8(1, *shape)
        assert_equal_bits(npu_matmul(a, a.T, device="emulated"), clipped_int8(a, a.T))
        assert last_call().kernel == chosen
        assert f"kernel {chosen}: least modelled time, 0.1" in last_call().reason
        assert "strategy batched: least modelled time of 3" in last_call().reason
    npu_matmul(a, a.T, device="emulated", kernel="exact", strategy="sequential")
    assert last_call().kernel == "exact"
    assert last_call().reason == "kernel exact: as asked; strategy sequential: as asked"
    with pytest.raises(KernelNotBuilt, match=r"'bare'.*exact"):
        npu_matmul(a, a.T, device="emulated", kernel="bare")


def test_sixteen_cores_are_taken_where_each_has_less_work_than_one_would() -> None:
    types = "int8", "int8", "int32"
    for problem, name in [
        ((16, 16, 16), "matmul_16x16"),
        ((64, 64, 64), "matmul_16x16"),
        ((256, 64, 512), "matmul_64x512"),
        ((1500, 512, 512), "matmul_64x512"),
    ]:
        assert choose.choose_kernel(None, types, problem)[0].name == name


@every_route
def test_a_packed_matrix_is_used_in_place_of_b(device: str, strategy: str | None) -> None:
    b = random_int8(1, 37, 21)
    packed = pack_b(b, device=device)
    assert (packed.shape, packed.ndim, packed.dtype) == ((37, 21), 2, np.int8)
    for shape in [(37,), (1, 37), (50, 37), (2, 3, 37), (0, 37)]:
        a = random_int8(2, *shape)
        got = npu_matmul(a, packed, dtype=np.int32, strategy=strategy)
        assert_equal_bits(got, np.matmul(a.astype(np.int32), b.astype(np.int32)))
        assert last_call().device == device
    out = np.empty((4, 21), np.int8)
    a = random_int8(3, 4, 37)
    assert npu_matmul(a, packed, out, device=device, strategy=strategy) is out
    assert_equal_bits(out, clipped_int8(a, b))


@every_device
def test_a_packed_matrix_is_a_copy(device: str) -> None:
    for shape in [(37, 21), (16, 16), (1, 1), (0, 5), (5, 0)]:
        b = random_int8(1, *shape)
        before = b.copy()
        packed = pack_b(np.asfortranarray(b), device=device)
        b[...] = 0
        assert_equal_bits(packed.operand(), before)


@every_device
@pytest.mark.parametrize("shape", [(0, 5), (5, 0), (0, 0)])
def test_an_empty_packed_matrix_gives_zeros_as_numpy_does(
    device: str, shape: tuple[int, int]
) -> None:
    a, b = random_int8(1, 3, shape[0]), random_int8(2, *shape)
    got = npu_matmul(a, pack_b(b, device=device), dtype=np.int32)
    assert_equal_bits(got, product_int32(a, b))


def test_a_packed_matrix_fits_only_its_device_and_kernel(npu: NpuDevice) -> None:
    a, b = random_int8(1, 3, 20), random_int8(2, 20, 4)
    packed = pack_b(b, device=npu)
    with pytest.raises(ValueError, match=rf"packed for device '{npu.name}', the call is for 'cpu'"):
        npu_matmul(a, packed, device="cpu")
    with pytest.raises(ValueError, match=r"packed for kernel 'matmul_16x16'.*'matmul_64x512'"):
        npu_matmul(a, packed, kernel="matmul_64x512")
    with pytest.raises(ValueError, match=r"'matmul_16x16'.* another one of that name; .*that k"):
        npu_matmul(a, packed, kernel=dataclasses.replace(KERNEL, grid=CoreGrid(2, 2)))
    for same in ("matmul_16x16", packed.kernel):
        assert_equal_bits(npu_matmul(a, packed, device=npu, kernel=same), clipped_int8(a, b))
    on_cpu = pack_b(b, device="cpu")
    with pytest.raises(ValueError, match="packed for device 'cpu'"):
        npu_matmul(a, on_cpu, device=npu)


@pytest.mark.parametrize("device", ["cpu", "emulated"])
def test_a_packed_matrix_excuses_no_wrong_option(device: str) -> None:
    a, packed = random_int8(1, 3, 20), pack_b(random_int8(2, 20, 4), device=device)
    with pytest.raises(UnknownKernel, match="'nothing'"):
        npu_matmul(a, packed, kernel="nothing")
    with pytest.raises(ValueError, match="there is no strategy 'all'"):
        npu_matmul(a, packed, strategy="all")
    with pytest.raises(ValueError, match="on_error='ignore': allowed are"):
        npu_matmul(a, packed, on_error="ignore")


def test_a_packed_matrix_of_a_wrong_shape_is_refused_in_numpys_words() -> None:
    b = random_int8(1, 20, 4)
    with pytest.raises(ValueError, match="mismatch") as numpys:
        np.matmul(b, b)
    with pytest.raises(ValueError, match="mismatch") as ours:
        npu_matmul(b, pack_b(b, device="cpu"))
    assert str(ours.value) == str(numpys.value)


@pytest.mark.parametrize(
    ("b", "options", "error", "message"),
    [
        (np.ones((2, 2), np.int64), {}, TypeError, "operand B is int64"),
        (np.ones(4, np.int8), {}, ValueError, "1 dimensions"),
        (np.ones((1, 2, 2), np.int8), {}, ValueError, "3 dimensions"),
        (np.ones((2, 2), np.int8), {"precision": "f8"}, ValueError, "bf16, bf16x3, int8"),
        (np.ones((2, 2), np.int8), {"kernel": "nothing"}, UnknownKernel, "'nothing'"),
    ],
)
def test_what_cannot_be_packed_is_refused(
    b: NDArray[Any], options: dict[str, Any], error: type[Exception], message: str
) -> None:
    with pytest.raises(error, match=message):
        pack_b(b, device="emulated", **options)


def test_a_packed_matrix_tells_what_it_is() -> None:
    text = repr(pack_b(np.ones((2, 3), np.int8), device="emulated"))
    assert text == "<PackedMatrix (2, 3) int8 as exact, device='emulated', kernel='matmul_16x16'>"
    on_cpu = pack_b(np.ones((2, 3), np.int8), device=open_device("cpu"))
    assert repr(on_cpu) == "<PackedMatrix (2, 3) int8 as exact, device='cpu'>"
    assert isinstance(on_cpu, PackedMatrix)


@pytest.mark.parametrize("device", ["cpu", "emulated"])
def test_a_packed_matrix_is_copied_as_itself_and_not_pickled(device: str) -> None:
    packed = pack_b(random_int8(1, 20, 30), device=device)
    assert copy.copy(packed) is packed and copy.deepcopy([packed])[0] is packed
    with pytest.raises(TypeError, match=r"PackedMatrix.*cannot be pickled.*pack_b\(B\)"):
        pickle.dumps(packed)


def test_only_b_can_be_packed() -> None:
    packed = pack_b(random_int8(1, 4, 4), device="cpu")
    with pytest.raises(TypeError, match="only B can be packed"):
        npu_matmul(packed, random_int8(2, 4, 4), device="cpu")


@every_device
def test_a_kernel_that_does_not_exist_is_an_error_on_every_device(device: str) -> None:
    a = random_int8(1, 4, 4)
    with pytest.raises(UnknownKernel, match="'nothing'"):
        npu_matmul(a, a, device=device, kernel="nothing")
    for b in (a, a[:0], a[:, :0]):
        with pytest.raises(UnknownKernel, match="'nothing'"):
            pack_b(b, device=device, kernel="nothing")


@every_device
def test_a_closed_device_neither_packs_nor_multiplies(device: str) -> None:
    a, opened = random_int8(1, 4, 4), open_device(device)
    opened.close()
    words = rf"was closed; open it again: open_device\('{device}'"
    for use in (pack_b, lambda b, device: npu_matmul(a, b, device=device)):
        with pytest.raises(DeviceError, match=words):
            use(a, device=opened)
    assert_equal_bits(npu_matmul(a, a, device=device), clipped_int8(a, a))


def test_what_was_packed_for_a_closed_device_says_so() -> None:
    device = open_device("emulated")
    packed = pack_b(random_int8(1, 4, 4), device=device)
    device.close()
    with pytest.raises(ValueError, match=r"was closed; pack it again: pack_b\(B\)"):
        npu_matmul(random_int8(2, 4, 4), packed)
