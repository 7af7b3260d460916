"""Designs that break one rule of tiles and cores each: what to change in ``rule_designs.GOOD``,
the rule, and parts of the place, the finding and the cure."""

from __future__ import annotations

Changes = tuple[tuple[str, str], ...]
Case = tuple[Changes, str, str, str, str]

RTP = '%rtp = aie.buffer(%one) {sym_name = "rtp", address = 1024 : i32} : memref<16xi32>'
IN_1 = "@in_1(%mem, {%one}, 2 : i32)"
TAKE_1 = "%s = aie.objectfifo.acquire @in_1(Consume, 1)"
GIVE_1 = "aie.objectfifo.release @in_1(Consume, 1)"
LINK_IN = "aie.objectfifo.link [@in] -> [@in_1, @in_2]([] [0, 16])"
TWO_MORE_TO_TWO = """\
aie.objectfifo @xy(%shim, {%mem}, 2 : i32) : !aie.objectfifo<memref<16xi32>>
    aie.objectfifo @x(%mem, {%two}, 2 : i32) : !aie.objectfifo<memref<8xi32>>
    aie.objectfifo @y(%mem, {%two}, 2 : i32) : !aie.objectfifo<memref<8xi32>>
    aie.objectfifo.link [@xy] -> [@x, @y]([] [0, 8])
    """
FROM_SHIM = "aie.objectfifo @{}(%shim, {{%far}}, 2 : i32) : !aie.objectfifo<memref<8xi32>>\n    "
FAR = "%far = aie.tile(0, 4)\n    "
STACK_OF_TWO = "@out_2(Produce, 1)\n      }\n      aie.end\n    }"

LOOP = "%o = %c0 to %max"
AT_RUN_TIME: Changes = (
    (
        "%c0 = arith.constant 0 : index\n",
        "%c0 = arith.constant 0 : index\n      %w = memref.load %rtp[%c0] : memref<16xi32>\n"
        "      %n = arith.index_cast %w : i32 to index\n",
    ),
    (LOOP, "%o = %c0 to %n"),
)


def dims(*loops: tuple[int, int]) -> str:
    return "[" + ", ".join(f"<size = {n}, stride = {s}>" for n, s in loops) + "]"


def at_core(*loops: tuple[int, int]) -> Changes:
    """A layout transformation where @in_1 arrives."""
    return ((IN_1, IN_1.replace("%one", f"%one dimensionsFromStream {dims(*loops)}")),)


def at_memtile(*loops: tuple[int, int]) -> Changes:
    """A layout transformation where @in_1 leaves."""
    return ((IN_1, IN_1.replace("%mem", f"%mem dimensionsToStream {dims(*loops)}")),)


def fifo(kind: str, source: str = "%mem", sink: str = "%far") -> Changes:
    """A FIFO @big through the memtile, with one buffer at each tile; %far is one without a core."""
    line = "aie.objectfifo @{}({}, {{{}}}, 1 : i32) : !aie.objectfifo<memref<{}>>\n    "
    lines = line.format("fed", "%shim", "%mem", kind) + line.format("big", source, sink, kind)
    return ((RTP, f"{FAR}{lines}aie.objectfifo.link [@fed] -> [@big]([] [])\n    {RTP}"),)


TILES: dict[str, Case] = {
    "a loop whose end is known at run time": (
        AT_RUN_TIME,
        "loops",
        "design.mlir:24: core (0, 2)",
        "a loop that acquires goes round as often as is known at run time, but the toolchain unro",
        "give the core dynamic_objfifo_lowering = true",
    ),
    "a loop of no rounds": (
        ((LOOP, "%o = %c0 to %c0"),),
        "loops",
        "core (0, 2)",
        "a loop that acquires goes round no times, but the toolchain unrolls it",
        "give the core dynamic_objfifo_lowering = true",
    ),
    "memory of a core": (
        ((STACK_OF_TWO, STACK_OF_TWO + " {stack_size = 65312 : i32}"),),
        "memory",
        "core (0, 3)",
        "65,568 B needed where 65,536 B are, 32 B too many: stack 65,312 B, out_2 2 x 64 B, in_2",
        "give @in_2 depth 1 there, which saves 64 B",
    ),
    "memory of a memtile": (
        fifo("131071xi32", sink="%shim"),
        "memory",
        "memtile (0, 1)",
        "524,796 B needed where 524,288 B are, 508 B too many: fed_cons 524,284 B, out 2 x 128 B",
        "make the elements smaller: with single buffers it would still be 524,540 B",
    ),
    "a buffer pinned into the stack": (
        ((RTP, RTP.replace("1024", "512")),),
        "memory",
        "core (0, 2)",
        "on top of each other: (stack) and rtp, (stack) and out_1_buff_0",
        "pin buffers behind the stack",
    ),
    "a buffer pinned past the memory": (
        ((RTP, RTP.replace("1024", "65504")),),
        "memory",
        "buffer @rtp at 65504 of core (0, 2)",
        "bytes 65,504 to 65,567",
        "within the 65536 B",
    ),
    "vectors that are not aligned": (
        ((RTP, RTP.replace("16xi32", "4xi32")),),
        "alignment",
        "core (0, 2)",
        "not at a multiple of 32 B: out_1_buff_0 at 1,040, out_1_buff_1 at 1,104, in_1_cons",
        "make multiples of 32 B of what stands before them: rtp of 16 B",
    ),
    "channels of a core": (
        ((RTP, TWO_MORE_TO_TWO + RTP),),
        "channels",
        "design.mlir:",
        "@y needs another S2MM channel of core (0, 3), which has 2",
        "use another tile",
    ),
    "channels of a shim": (
        ((RTP, FAR + FROM_SHIM.format("x") + FROM_SHIM.format("y") + RTP),),
        "channels",
        "design.mlir:",
        "@y needs another MM2S channel of shim (0, 0), which has 2",
        "use another tile",
    ),
    "descriptors of a core": (
        ((IN_1, IN_1.replace("2 : i32", "[2, 15]")),),
        "descriptors",
        "core (0, 2)",
        "17 buffer descriptors needed where its DMA can use 16: @in_1 15, @out_1 2",
        "use smaller depths",
    ),
    "descriptors of a memtile": (
        (("@in(%shim, {%mem}, 2 : i32)", "@in(%shim, {%mem}, [2, 8])"),),
        "descriptors",
        "memtile (0, 1)",
        "30 buffer descriptors needed where its even channels can use 24: @in 16, @in_1 8, @out",
        "use smaller depths",
    ),
    "a depth of nothing": (
        (("@in(%shim, {%mem}, 2 : i32)", "@in(%shim, {%mem}, 0 : i32)"),),
        "depth",
        "object FIFO @in",
        "a depth must be at least 1, got (0, 0)",
        "give 2",
    ),
    "more acquired than there is": (
        ((TAKE_1, TAKE_1.replace("1)", "3)")), (GIVE_1, GIVE_1.replace("1)", "3)"))),
        "depth",
        "core (0, 2)",
        "acquires 3 of @in_1 at once, whose depth there is 2",
        "make it 4",
    ),
    "too many dimensions for a core": (
        at_core((2, 8), (2, 4), (2, 2), (2, 1)),
        "layout",
        "object FIFO @in_1 at core (0, 2)",
        "4 dimensions where a descriptor there has 3",
        "at the other end",
    ),
    "too many dimensions for a memtile": (
        at_memtile((1, 1), (2, 8), (2, 4), (2, 2), (2, 1)),
        "layout",
        "object FIFO @in_1 at memtile (0, 1)",
        "5 dimensions where a descriptor there has 4",
        "at the other end",
    ),
    "a loop too long": (
        fifo("1026xi32", source=f"%mem dimensionsToStream {dims((2, 513), (513, 1))}"),
        "layout",
        "object FIFO @big at memtile (0, 1)",
        "<size = 513, stride = 1>: 513 elements where a loop has 512 at most",
        "split it",
    ),
    "a wrap too wide for a core": (
        fifo("1024xi32", sink=f"%far dimensionsFromStream {dims((256, 4), (4, 1))}"),
        "layout",
        "object FIFO @big at core (0, 4)",
        "<size = 256, stride = 4>: a wrap of 256 where the field holds 255",
        "split it",
    ),
    "a run of words too wide for a core": (
        fifo("1024xi16", sink=f"%far dimensionsFromStream {dims((2, 512), (512, 1))}"),
        "layout",
        "object FIFO @big at core (0, 4)",
        "<size = 512, stride = 1>: a wrap of 256 where the field holds 255",
        "split it",
    ),
    "a layout that is no permutation": (
        at_core((4, 1), (4, 1)),
        "layout",
        "object FIFO @in_1",
        "moves 16 elements up to index 6",
        "each of the 16 once",
    ),
    "a loop that stands still": (
        at_core((1, 0), (16, 1)),
        "layout",
        "object FIFO @in_1 at core (0, 2)",
        "<size = 1, stride = 0>: a stride must be positive",
        "leave the loop out",
    ),
    "an element longer than a descriptor can say": (
        fifo("65536xi8"),
        "layout",
        "object FIFO @big at core (0, 4)",
        "an element of 16,384 words where a descriptor moves 16,383",
        "make the elements smaller",
    ),
    "an element of part of a word": (
        ((RTP, FAR + FROM_SHIM.format("big").replace("8xi32", "7xi8") + RTP),),
        "granularity",
        "object FIFO @big",
        "an element of 7 B cannot be moved: DMAs move 4 B words",
        "multiple of 4 B",
    ),
    "a buffer between words": (
        ((RTP, RTP.replace("1024", "65442")),),
        "granularity",
        "buffer @rtp at 65442",
        "2 B past a word",
        "start at a multiple of 4",
    ),
    "an end that a core is not": (
        ((TAKE_1, TAKE_1.replace("in_1", "in_2")), (GIVE_1, GIVE_1.replace("in_1", "in_2"))),
        "wiring",
        "core (0, 2)",
        "is not on the Consume side of @in_2",
        "make it an end of that FIFO",
    ),
    "a link of something unknown": (
        ((LINK_IN, LINK_IN.replace("[@in]", "[@on]")),),
        "wiring",
        "link ['on'] -> ['in_1', 'in_2']",
        "there is no object FIFO @on",
        "declare it above",
    ),
    "a FIFO that ends nowhere": (
        (
            (
                RTP,
                "aie.objectfifo @x(%shim, {%mem}, 1 : i32) : !aie.objectfifo<memref<8xi32>> " + RTP,
            ),
        ),
        "wiring",
        "object FIFO @x",
        "it ends in memtile (0, 1) without a link",
        "link it to the FIFO that goes on from there",
    ),
    "a FIFO from nowhere": (
        (
            (
                RTP,
                "aie.objectfifo @x(%mem, {%two}, 1 : i32) : !aie.objectfifo<memref<8xi32>> " + RTP,
            ),
        ),
        "wiring",
        "object FIFO @x",
        "it starts in memtile (0, 1) without a link",
        "or comes from there",
    ),
    "pieces that leave a gap": (
        ((LINK_IN, LINK_IN.replace("16]", "20]")),),
        "wiring",
        "link ['in']",
        "pieces [(0, 16), (20, 36)] do not cover the 32 elements of @in",
        "without gaps",
    ),
    "elements forwarded in other sizes": (
        (
            *fifo("8xi32"),
            (
                "@fed(%shim, {%mem}, 1 : i32) : !aie.objectfifo<memref<8",
                "@fed(%shim, {%mem}, 1 : i32) : !aie.objectfifo<memref<16",
            ),
        ),
        "wiring",
        "link ['fed'] -> ['big']",
        "elements of 16 become elements of 8, which is not supported here",
        "give both FIFOs the same elements",
    ),
    "a FIFO without consumers": (
        ((RTP, "aie.objectfifo @x(%shim, {}, 2 : i32) : !aie.objectfifo<memref<8xi32>> " + RTP),),
        "wiring",
        "object FIFO @x",
        "it has no consumer",
        "name one",
    ),
    "an element that is not released": (
        ((GIVE_1, ""),),
        "balance",
        "core (0, 2)",
        "this block acquires @in_1 and does not release it",
        "peel the first step",
    ),
    "an element that is released twice": (
        ((GIVE_1, f"{GIVE_1} {GIVE_1}"),),
        "balance",
        "core (0, 2)",
        "releases more of @in_1 than this block has acquired",
        "once",
    ),
    "an element that is released and was never acquired": (
        ((GIVE_1, f"{GIVE_1} aie.objectfifo.release @out_1(Consume, 1)"),),
        "balance",
        "core (0, 2)",
        "releases more of @out_1 than this block has acquired",
        "once",
    ),
}
