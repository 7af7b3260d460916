"""Stand-ins for the toolchain's programs, which refuse arguments that the real ones would not take.

What they accept is written down here once more, from the documentation of the real ones, and not
taken from the code under test.
"""

from __future__ import annotations

import contextlib
import json
import stat
import sys
from dataclasses import asdict, replace
from pathlib import Path

import pytest
from lowered_builds import lowered_build

from npu_matmul.kernel import Depths, Kernel, TileShape, load_kernel

COMMON = """#!{python} -ES
import json, os, pathlib, re, sys, time
me = pathlib.Path(__file__)
arguments = sys.argv[1:]

def refuse(text):
    print(f"{{me.name}}: error: {{text}}")
    sys.exit(2)

if arguments in (["--version"], ["--aie-version"]):
    print(f"{{me.name}} {{os.environ.get('STANDIN_VERSION', '1.0')}}")
    sys.exit(0)

def called():
    with open(os.environ["STANDIN_CALLS"], "a") as calls:
        calls.write(json.dumps([me.name, os.getcwd(), *arguments]) + "\\n")
    print(f"{{me.name}} works", flush=True)
    if os.environ.get("STANDIN_FAILS") == me.name:
        refuse("on purpose")
"""

CLANG = """
called()
flags, source, output, wanted = [], None, None, iter(arguments)
for word in wanted:
    if word == "-c": source = pathlib.Path(next(wanted))
    elif word == "-o": output = pathlib.Path(next(wanted))
    elif not word.startswith("-"): refuse(f"unknown argument {word}")
    else: flags.append(word)
if "--target=aie2-none-unknown-elf" not in flags: refuse("not for aie2")
if not {"-O2", "-std=c++20", "-DNDEBUG"} <= set(flags): refuse("flags are missing")
includes = [pathlib.Path(f[2:]) for f in flags if f.startswith("-I")]
if "-D__AIE_API_AIE_ADF_HPP__" not in flags: refuse("aie_api: 'adf.h' file not found")
if not any((i / "aie_api" / "aie.hpp").is_file() for i in includes): refuse("aie_api not found")
sizes = dict(f[2:].split("=") for f in flags if f.startswith("-DDIM_"))
if set(sizes) != {"DIM_M", "DIM_K", "DIM_N"}: refuse(f"sizes are {sizes}")
if output.parent != pathlib.Path("."): refuse("the object belongs into the working folder")
output.write_text(source.read_text() + json.dumps(sizes))
"""

AIECC = """
release = os.environ.get("STANDIN_AIECC", "1.3")
chess = {"--no-xchesscc", "--no-xbridge"}  # it is the default, or was
wanted = {"--get-xclbin", "--get-npu-insts", "--get-input-with-addresses"}
switches = {"1.3": {"--no-compile-host", *chess, "--aie-generate-xclbin",
                    "--aie-generate-npu-insts"},
            "1.4": {*wanted, *chess}, "1.4.4": wanted}[release]
options = {"--alloc-scheme", "--peano", "--tmpdir", "--xclbin-name", "--xclbin-kernel-name",
           "--npu-insts-name"}
listed = {*options, *(s for s in switches if not s.startswith("--get-"))}
if release != "1.3": listed |= {"--get", "--aie-version"}
if arguments == ["--help"]:
    print("OPTIONS:", *(f"  {name}=<value> - text" for name in sorted(listed)), sep="\\n")
    sys.exit(0)
called()
given, inputs = {}, []
for word in arguments:
    name, _, value = word.partition("=")
    if word in switches: given[word] = True
    elif name in options and value: given[name] = value
    elif word.startswith("-"): refuse(f"unknown argument {word}")
    else: inputs.append(pathlib.Path(word))
if switches - set(given) or options - set(given): refuse("arguments are missing")
if len(inputs) != 1: refuse("one module, please")
if not (pathlib.Path(given["--peano"]) / "bin" / "clang++").is_file(): refuse("no Peano")
if given["--alloc-scheme"] != "basic-sequential": refuse("another scheme was checked")
if not any((pathlib.Path(p) / "xclbinutil").is_file() for p in os.environ["PATH"].split(":")):
    refuse("xclbinutil not found")
design = inputs[0].read_text()
for name in set(re.findall(r'link_with = "([^"]+)"', design)):
    if not pathlib.Path(name).is_file(): refuse(f"{name} not found")
if "aie.runtime_sequence" not in design: refuse("no sequence to write instructions of")
writes = re.findall(r"aiex\\.npu\\.rtp_write\\(@\\w+, \\d+, (.*)", design)
form = r"\\d+\\)" if release == "1.3" else r"%\\w+\\) : i32"
if not writes or not all(re.fullmatch(form, rest) for rest in writes):
    refuse("custom op 'aiex.npu.rtp_write': this release has another syntax")
time.sleep(float(os.environ.get("STANDIN_SECONDS", "0")))
folder = pathlib.Path(given["--tmpdir"])
folder.mkdir()
products = pathlib.Path(os.environ["STANDIN_PRODUCTS"])
if os.environ.get("STANDIN_FAILS") != "forgets":
    (folder if release == "1.3" else pathlib.Path()).joinpath(
        "input_with_addresses.mlir").write_bytes((products / "lowered").read_bytes())
kernel = [given["--xclbin-kernel-name"], 8]
table = {"uuid": str(os.getpid()), "kernels": [kernel], "design": design,
         "manifest": json.loads(os.environ["STANDIN_MANIFEST"])}
content = b"xclbin2\\0" + json.dumps(table).encode()
if os.environ.get("STANDIN_FAILS") == "empty": content = b""
pathlib.Path(given["--xclbin-name"]).write_bytes(content)
pathlib.Path(given["--npu-insts-name"]).write_bytes((products / "insts").read_bytes())
"""


class StandIns:
    """An installed toolchain; ``calls`` are the commands it was given, ``lowered`` and ``insts``
    what its aiecc makes of any design: what is right for ``matmul_16x16``."""

    def __init__(self, folder: Path, monkeypatch: pytest.MonkeyPatch, kernel: Kernel) -> None:
        self.mlir_aie, self.peano, self.xrt = (folder / n for n in ("mlir", "peano", "xrt"))
        self._calls = folder / "calls"
        headers = self.mlir_aie / "include" / "aie_api"
        headers.mkdir(parents=True)
        (headers / "aie.hpp").touch()
        self._program(self.peano / "bin" / "clang++", CLANG)
        self._program(self.mlir_aie / "bin" / "aiecc", AIECC)
        self._program(self.xrt / "bin" / "xclbinutil", "")
        self.lowered, self.insts = folder / "lowered", folder / "insts"
        lowered, insts = lowered_build(kernel)
        self.lowered.write_text(lowered)
        self.insts.write_bytes(insts)
        manifest = json.dumps({**asdict(kernel), "source": kernel.source.name})
        for name, value in {
            "MLIR_AIE_INSTALL_DIR": str(self.mlir_aie),
            "PEANO_INSTALL_DIR": str(self.peano),
            "XILINX_XRT": str(self.xrt),
            "STANDIN_CALLS": str(self._calls),
            "STANDIN_MANIFEST": manifest,
            "STANDIN_PRODUCTS": str(folder),
            "NPU_MATMUL_CACHE": str(folder / "cache"),
        }.items():
            monkeypatch.setenv(name, value)

    @property
    def calls(self) -> list[list[str]]:
        """Program, working folder, arguments."""
        lines = self._calls.read_text().splitlines() if self._calls.exists() else []
        return [json.loads(line) for line in lines]

    def running(self) -> list[str]:
        """Command lines of its programs that run now."""
        lines = []
        for process in Path("/proc").glob("[0-9]*"):
            with contextlib.suppress(OSError):
                lines.append((process / "cmdline").read_bytes().replace(b"\0", b" ").decode())
        return [line for line in lines if str(self.mlir_aie.parent) in line]

    def _program(self, path: Path, body: str) -> None:
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(COMMON.format(python=sys.executable) + body)
        path.chmod(path.stat().st_mode | stat.S_IEXEC)


def changed_kernels() -> dict[str, Kernel]:
    """The smallest kernel with one thing changed that a build depends on, by its name."""
    kernel = load_kernel("matmul_16x16")
    return {
        "tile": replace(kernel, tile=TileShape(16, 32, 16)),
        "depths": replace(kernel, depths=Depths(2, 2, 1)),
        "stack": replace(kernel, stack_bytes=4096),
        "source": replace(kernel, source=load_kernel("matmul_64x512", "bf16").source),
    }
