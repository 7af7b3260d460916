"""The products that are compared: ours, and those of NumPy, PyTorch and ONNX Runtime.

A form takes one problem and returns a call without arguments that computes it into memory of its
own, as an application in a loop would: the memory of the first result is reused, and constant
weights B are packed once where the library can keep them so (ONNX Runtime packs a model's
constants). NumPy and PyTorch are given B as it is on every call.
Libraries are imported only by the forms' makers, which run in a process of that library alone.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property, partial
from importlib.util import find_spec
from typing import Any

import ml_dtypes
import numpy as np
from numpy.typing import NDArray

from npu_matmul.bench.accuracy import Accuracy, count_wrong, error_bound, relative_error
from npu_matmul.extras import MissingExtra
from npu_matmul.shapes import Shape

BASELINE = "np.matmul f32"
OWN_INT8, OWN_BF16, OWN_DYNAMIC = "npu_matmul int8", "npu_matmul bf16", "npu_matmul dynamic int8"
OWN_AVX2, OWN_PACKING = "npu_matmul int8, AVX2 only", "npu_matmul int8, packing B"
BOTH = "np.matmul f32, npu_matmul int8"  # one after the other, in one process
TORCH_INT8, TORCH_BF16, TORCH_F32 = "torch._int_mm", "torch bf16", "torch f32"
ORT_INT8, ORT_DYNAMIC = "ort MatMulInteger u8s8", "ort DynamicQuantizeMatMul"

OPTIONAL = {"torch": ("torch",), "ort": ("onnxruntime", "onnx")}  # packages by --against's word
OPSET = 13
PACKED, PACKING, AS_GIVEN = "packed before its turns", "packed in each call", "given as it is"
IR_VERSION = 8  # ONNX 1.10: every ONNX Runtime of the last years reads it


@dataclass(frozen=True)
class Problem:
    """Seeded operands (M, K) and (K, N): int8 over the whole range, float32 standard normal."""

    a_int8: NDArray[np.int8]
    b_int8: NDArray[np.int8]
    a_f32: NDArray[np.float32]
    b_f32: NDArray[np.float32]

    @classmethod
    def random(cls, shape: Shape) -> Problem:
        M, K, N = shape
        random = np.random.default_rng(0)
        return cls(
            random.integers(-128, 128, (M, K), dtype=np.int8),
            random.integers(-128, 128, (K, N), dtype=np.int8),
            random.standard_normal((M, K), dtype=np.float32),
            random.standard_normal((K, N), dtype=np.float32),
        )

    def accuracy(self, kind: str, result: NDArray[Any]) -> Accuracy:
        """Of int8 the values that differ from the exact product, else the error against the float64
        product of the float32 operands."""
        if kind == "int8":
            return count_wrong(result, self._exact)
        bound = error_bound(kind, self.a_f32.shape[1])
        return relative_error(result, self._float64, bound)

    @cached_property
    def _exact(self) -> NDArray[np.int64]:
        return np.asarray((self.a_int8.astype(float) @ self.b_int8.astype(float)).astype(np.int64))

    @cached_property
    def _float64(self) -> NDArray[np.float64]:
        return np.asarray(self.a_f32.astype(float) @ self.b_f32.astype(float))


@dataclass(frozen=True)
class Ready:
    """One call, and what the last one computed: of a product (M, N), the memory that each call
    fills."""

    work: Callable[[], Any]
    result: Callable[[], NDArray[Any]]


@dataclass(frozen=True)
class Form:
    """``kind`` is "int8" (exact), "dynamic int8" (float32 in and out), "bf16" or "f32";
    ``element_bytes`` are those of A, B and C, ``path`` the instructions it was forced to,
    ``weights`` says what becomes of B."""

    name: str
    kind: str
    element_bytes: tuple[int, int, int]
    prepare: Callable[[Problem], Ready]
    path: str | None = None
    weights: str = AS_GIVEN

    def operand_bytes(self, shape: Shape) -> int:
        M, K, N = shape
        return sum(
            size * wide
            for size, wide in zip((M * K, K * N, M * N), self.element_bytes, strict=True)
        )


def check_installed(library: str) -> None:
    """Raises :class:`MissingExtra` when --against's word needs a package that is not there."""
    missing = [name for name in OPTIONAL.get(library, ()) if find_spec(name) is None]
    if missing:
        raise MissingExtra(
            f"--against {library} needs {' and '.join(missing)}: pip install 'npu-matmul[bench]'"
        )


def forms(library: str, path: str | None = None) -> list[Form]:
    """What a library's process measures; ``path`` is what ``$NPU_MATMUL_CPU_PATH`` forces."""
    if path is not None:
        return [Form(OWN_AVX2, "int8", (1, 1, 4), _own_int8, path, weights=PACKED)]
    return _FORMS[library]


def _own_int8(problem: Problem) -> Ready:
    from npu_matmul import npu_matmul, pack_b

    a, b = problem.a_int8.copy(), pack_b(problem.b_int8, device="cpu")
    out = npu_matmul(a, b, dtype=np.int32)
    return Ready(partial(npu_matmul, a, b, out=out, dtype=np.int32), lambda: out)


def _own_packing(problem: Problem) -> Ready:
    from npu_matmul import npu_matmul

    a, b = problem.a_int8.copy(), problem.b_int8.copy()
    out = np.empty((a.shape[0], b.shape[1]), np.int32)
    return Ready(partial(npu_matmul, a, b, out=out, dtype=np.int32, device="cpu"), lambda: out)


def _own_bf16(problem: Problem) -> Ready:
    from npu_matmul import npu_matmul, pack_b

    a = problem.a_f32.astype(ml_dtypes.bfloat16)
    b = pack_b(problem.b_f32.astype(ml_dtypes.bfloat16), device="cpu", precision="bf16")
    out = npu_matmul(a, b, dtype=np.float32)
    return Ready(partial(npu_matmul, a, b, out=out, dtype=np.float32), lambda: out)


def _own_dynamic(problem: Problem) -> Ready:
    from npu_matmul import npu_matmul, pack_b

    a, b = problem.a_f32.copy(), pack_b(problem.b_f32, device="cpu", precision="int8")
    out = npu_matmul(a, b)
    return Ready(partial(npu_matmul, a, b, out=out), lambda: out)


def _numpy_f32(problem: Problem) -> Ready:
    a, b = problem.a_f32.copy(), problem.b_f32.copy()
    out = np.empty((a.shape[0], b.shape[1]), np.float32)
    return Ready(partial(np.matmul, a, b, out=out), lambda: out)


def _both(problem: Problem) -> Ready:
    """NumPy's product and ours in turn, as a program has them that uses both; the result is ours,
    the second."""
    theirs, ours = _numpy_f32(problem), _own_int8(problem)

    def work() -> None:
        theirs.work()
        ours.work()

    return Ready(work, ours.result)


def _torch_int8(problem: Problem) -> Ready:
    import torch

    a, b = torch.from_numpy(problem.a_int8.copy()), torch.from_numpy(problem.b_int8.copy())
    out = torch.empty((a.shape[0], b.shape[1]), dtype=torch.int32)
    return Ready(partial(torch._int_mm, a, b, out=out), out.numpy)


def _torch_float(problem: Problem, bf16: bool) -> Ready:
    import torch

    kind = torch.bfloat16 if bf16 else torch.float32
    a, b = (torch.from_numpy(x.copy()).to(kind) for x in (problem.a_f32, problem.b_f32))
    out = torch.empty((a.shape[0], b.shape[1]), dtype=kind)
    memory = out.view(torch.int16).numpy().view(ml_dtypes.bfloat16) if bf16 else out.numpy()
    return Ready(partial(torch.matmul, a, b, out=out), lambda: memory)


def _ort_int8(problem: Problem) -> Ready:
    """Activations moved up by 128 to u8, with that zero point: u8s8 is the fast form on x86."""
    a = (problem.a_int8.astype(np.int16) + 128).astype(np.uint8)
    constants = {"b": problem.b_int8, "zero": np.array(128, np.uint8)}
    return _ort("MatMulInteger", "", a, constants, np.int32)


def _ort_dynamic(problem: Problem) -> Ready:
    """B quantised symmetrically by column, as ours; A by ONNX Runtime, with one scale."""
    scale = (np.abs(problem.b_f32).max(axis=0) / 127).astype(np.float32)
    b = np.rint(problem.b_f32 / scale).astype(np.int8)
    constants = {"b": b, "scale": scale, "zero": np.zeros_like(scale, np.int8)}
    domain = "com.microsoft"
    return _ort("DynamicQuantizeMatMul", domain, problem.a_f32, constants, np.float32)


def _ort(
    operator: str,
    domain: str,
    a: NDArray[Any],
    constants: dict[str, NDArray[Any]],
    result: type[np.generic],
) -> Ready:
    """One operator as a model, with inputs and outputs bound to memory of their own."""
    import onnxruntime
    from onnx import helper, numpy_helper

    shape = [a.shape[0], constants["b"].shape[1]]
    kinds = [helper.np_dtype_to_tensor_dtype(np.dtype(kind)) for kind in (a.dtype, result)]
    graph = helper.make_graph(
        [helper.make_node(operator, ["a", *constants], ["c"], domain=domain)],
        operator,
        [helper.make_tensor_value_info("a", kinds[0], list(a.shape))],
        [helper.make_tensor_value_info("c", kinds[1], shape)],
        [numpy_helper.from_array(value, name) for name, value in constants.items()],
    )
    opsets = [helper.make_opsetid("", OPSET), helper.make_opsetid("com.microsoft", 1)]
    model = helper.make_model(graph, opset_imports=opsets, ir_version=IR_VERSION)
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = _threads()
    options.inter_op_num_threads = 1
    session = onnxruntime.InferenceSession(
        model.SerializeToString(), options, providers=["CPUExecutionProvider"]
    )
    memory = a.copy(), np.empty(shape, result)  # which OrtValues of the CPU share
    values = [onnxruntime.OrtValue.ortvalue_from_numpy(x) for x in memory]
    binding = session.io_binding()
    binding.bind_ortvalue_input("a", values[0])
    binding.bind_ortvalue_output("c", values[1])
    return Ready(partial(session.run_with_iobinding, binding), lambda: memory[1])


def _threads() -> int:
    """How many threads this process may use; one CPU each."""
    from npu_matmul.bench.environment import usable_cpus

    return len(usable_cpus())


_FORMS = {
    "npu_matmul": [
        Form(OWN_INT8, "int8", (1, 1, 4), _own_int8, weights=PACKED),
        Form(OWN_PACKING, "int8", (1, 1, 4), _own_packing, weights=PACKING),
        Form(OWN_BF16, "bf16", (2, 2, 4), _own_bf16, weights=PACKED),
        Form(OWN_DYNAMIC, "dynamic int8", (4, 1, 4), _own_dynamic, weights=PACKED),
    ],
    "numpy": [Form(BASELINE, "f32", (4, 4, 4), _numpy_f32)],
    "both": [Form(BOTH, "int8", (5, 5, 8), _both, weights=PACKED)],
    "torch": [
        Form(TORCH_INT8, "int8", (1, 1, 4), _torch_int8),
        Form(TORCH_BF16, "bf16", (2, 2, 2), partial(_torch_float, bf16=True)),
        Form(TORCH_F32, "f32", (4, 4, 4), partial(_torch_float, bf16=False)),
    ],
    "ort": [
        Form(ORT_INT8, "int8", (1, 1, 4), _ort_int8, weights=PACKED),
        Form(ORT_DYNAMIC, "dynamic int8", (4, 1, 4), _ort_dynamic, weights=PACKED),
    ],
}
