"""``npu_matmul`` against ``np.matmul``: every device and strategy, bit for bit."""

from __future__ import annotations

import array
import doctest
from collections.abc import Callable
from importlib import import_module
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from comparing import ON_A_REAL_NPU, assert_equal_bits, product_int32, random_int8
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from npu_matmul import PackedMatrix, choose, last_call, npu_matmul, open_device, pack_b
from npu_matmul.call import Call
from npu_matmul.device import DeviceError, NpuDevice
from npu_matmul.kernel import KernelNotBuilt, UnknownKernel, load_kernel
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


def clipped(a: Any, b: Any) -> NDArray[np.int8]:
    saturated: NDArray[np.int8] = np.clip(product_int32(a, b), -128, 127).astype(np.int8)
    return saturated


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
        assert_equal_bits(npu_matmul(a, b, device=device, strategy=strategy), clipped(a, b))


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
    assert_equal_bits(npu_matmul(a, b, device=device), clipped(a, b))


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


MISMATCHED = [
    ((2, 3), (2, 3)),
    ((3,), (4,)),
    ((3,), (4, 3)),
    ((2, 3), (2,)),
    ((), (3,)),
    ((2, 3), ()),
    ((2, 2, 3), (3, 3, 4)),
    ((2, 2, 3), (2, 4, 3)),
    ((0, 3), (2, 3)),
]


@every_device
@pytest.mark.parametrize(("a_shape", "b_shape"), MISMATCHED)
def test_shapes_that_do_not_fit_are_refused_in_numpys_words(
    device: str, a_shape: tuple[int, ...], b_shape: tuple[int, ...]
) -> None:
    a, b = np.zeros(a_shape, np.int8), np.zeros(b_shape, np.int8)
    with pytest.raises(ValueError) as numpys:
        np.matmul(a, b)
    with pytest.raises(ValueError) as ours:
        npu_matmul(a, b, device=device)
    assert str(ours.value) == str(numpys.value)


@pytest.mark.parametrize("dtype", ["uint8", "int16", "int32", "int64", "bool"])
@pytest.mark.parametrize("operand", ["A", "B"])
def test_other_integers_are_refused_with_the_cast_that_cures_it(operand: str, dtype: str) -> None:
    good, bad = np.ones((2, 2), np.int8), np.ones((2, 2), dtype)
    pair = (bad, good) if operand == "A" else (good, bad)
    with pytest.raises(TypeError, match=rf"operand {operand} is {dtype};.*int8") as refused:
        npu_matmul(*pair, device="cpu")
    assert f"{operand}.astype(np.int8)" in str(refused.value)


@pytest.mark.parametrize("dtype", ["longdouble", "complex64", "object", "timedelta64[s]"])
@pytest.mark.parametrize("operand", ["A", "B"])
def test_what_is_no_real_float_is_refused(operand: str, dtype: str) -> None:
    good, bad = np.ones((2, 2), np.int8), np.ones((2, 2), dtype)
    pair = (bad, good) if operand == "A" else (good, bad)
    with pytest.raises(TypeError, match=rf"operand {operand} is .*supported are int8, float16"):
        npu_matmul(*pair, device="cpu")


@pytest.mark.parametrize("operand", ["A", "B"])
def test_a_mask_is_not_lost(operand: str) -> None:
    good = np.ones((2, 2), np.int8)
    bad = np.ma.array(good, mask=[[1, 0], [0, 0]])
    pair = (bad, good) if operand == "A" else (good, bad)
    with pytest.raises(TypeError, match=rf"operand {operand} is a masked array.*{operand}.filled"):
        npu_matmul(*pair, device="cpu")
    with pytest.raises(TypeError, match="operand B is a masked array"):
        pack_b(bad, device="cpu")


def test_int8_with_a_b_that_is_packed_for_floats_asks_for_the_type() -> None:
    a, b = random_int8(1, 3, 4), random_int8(2, 4, 5)
    packed = pack_b(b, device="cpu", precision="bf16")
    with pytest.raises(TypeError, match="B is packed for products of floats; say which type"):
        npu_matmul(a, packed)
    got = npu_matmul(a, packed, dtype=np.float32)
    assert_equal_bits(got, product_int32(a, b).astype(np.float32))  # exact: sums below 2**24


def test_what_is_packed_is_not_packed_again() -> None:
    with pytest.raises(TypeError, match="B is packed already"):
        pack_b(pack_b(random_int8(1, 4, 5), device="cpu"), device="cpu")


@pytest.mark.parametrize("dtype", [">i4", "<i4"])
def test_a_result_type_of_either_byte_order_is_the_native_one(dtype: str) -> None:
    a, b = random_int8(1, 3, 4), random_int8(2, 4, 5)
    got = npu_matmul(a, b, dtype=dtype, device="cpu")
    assert got.dtype.isnative
    assert_equal_bits(got, product_int32(a, b))


@pytest.mark.parametrize("dtype", [np.int16, np.float32, "uint8", ">i2"])
def test_a_result_is_int8_or_int32(dtype: Any) -> None:
    a = np.ones((2, 2), np.int8)
    with pytest.raises(TypeError, match=r"np\.int8 .*np\.int32"):
        npu_matmul(a, a, dtype=dtype, device="cpu")
    assert npu_matmul(a, a, dtype="int32", device="cpu").dtype == np.int32


@every_device
@pytest.mark.parametrize("dtype", [np.int8, np.int32])
def test_out_is_filled_and_returned_whatever_its_memory_layout(device: str, dtype: Any) -> None:
    a, b = random_int8(1, 2, 17, 20), random_int8(2, 20, 9)
    want = product_int32(a, b) if dtype == np.int32 else clipped(a, b)
    wide = np.full((2, 17, 18), 77, dtype)
    for out in (
        np.empty((2, 17, 9), dtype),
        np.empty((2, 17, 9), dtype, order="F"),
        wide[..., ::2],
    ):
        assert npu_matmul(a, b, out, dtype=dtype, device=device) is out
        assert_equal_bits(out, want)
    assert (wide[..., 1::2] == 77).all()


@every_device
@pytest.mark.parametrize("dtype", [">i4", ">f4", ">f8", ">f2"])
def test_out_may_have_any_byte_order(device: str, dtype: str) -> None:
    a, b = random_int8(1, 9, 20), random_int8(2, 20, 7)
    native = np.dtype(dtype).newbyteorder("=")
    if dtype != ">i4":
        a, b = a.astype(native), b.astype(native)
    for right in (b, pack_b(b, device=device, precision=None if dtype == ">i4" else "bf16")):
        want = npu_matmul(a, right, dtype=native, device=device)
        out = np.full((9, 7), 7, dtype)
        assert npu_matmul(a, right, out, dtype=native, device=device) is out
        assert_equal_bits(out.astype(native), want)


@every_device
def test_out_may_be_an_operand(device: str) -> None:
    a, b = random_int8(1, 20, 20), random_int8(2, 20, 20)
    want = clipped(a, b)
    assert npu_matmul(a, b, out=a, device=device) is a
    assert_equal_bits(a, want)
    want = clipped(b, b)
    npu_matmul(b, b, out=b, device=device)
    assert_equal_bits(b, want)


def test_a_scalar_result_fills_an_out_of_no_dimensions() -> None:
    out = np.zeros((), np.int32)
    a = np.array([3, 4], np.int8)
    assert npu_matmul(a, a, out, dtype=np.int32, device="cpu") is out
    assert out == 25


READ_ONLY = np.zeros((2, 2), np.int8)
READ_ONLY.flags.writeable = False


@pytest.mark.parametrize(
    ("out", "error", "message"),
    [
        (np.zeros((2, 3), np.int8), ValueError, r"\(2, 3\); the result has \(2, 2\): pass"),
        (np.zeros((1, 2, 2), np.int8), ValueError, r"\(1, 2, 2\)"),
        (np.zeros((2, 2), np.int32), TypeError, "out is int32, .*dtype=int32"),
        ([[0, 0], [0, 0]], TypeError, "not list"),
        (READ_ONLY, ValueError, "npu_matmul: out is read-only; pass an array that can be written"),
    ],
)
def test_an_unfit_out_is_refused_untouched(out: Any, error: type, message: str) -> None:
    a = np.ones((2, 2), np.int8)
    with pytest.raises(error, match=message):
        npu_matmul(a, a, out, device="cpu")
    assert not np.any(out)


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
    assert_equal_bits(npu_matmul(a, a, device="emulated"), clipped(a, a))


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
        assert_equal_bits(npu_matmul(a, a.T, device="emulated"), clipped(a, a.T))
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
    assert_equal_bits(out, clipped(a, b))


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
    assert_equal_bits(npu_matmul(a, packed, device=npu, kernel="matmul_16x16"), clipped(a, b))
    on_cpu = pack_b(b, device="cpu")
    with pytest.raises(ValueError, match="packed for device 'cpu'"):
        npu_matmul(a, on_cpu, device=npu)


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
    assert_equal_bits(npu_matmul(a, a, device=device), clipped(a, a))


def test_what_was_packed_for_a_closed_device_says_so() -> None:
    device = open_device("emulated")
    packed = pack_b(random_int8(1, 4, 4), device=device)
    device.close()
    with pytest.raises(ValueError, match=r"was closed; pack it again: pack_b\(B\)"):
        npu_matmul(random_int8(2, 4, 4), packed)
