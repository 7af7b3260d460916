"""Designs whose runtime sequence breaks one rule each, as ``broken_designs`` has them."""

from __future__ import annotations

from broken_designs import Case, Changes

SEND = "aiex.npu.dma_memcpy_nd(%x[0,0,0,0][4,1,1,32][32,0,0,1]) {id = 1 : i64, metadata = @in} "
SENT = f"{SEND}: memref<4096xi32>\n      "
WRITE = "aiex.npu.rtp_write(@rtp, 0, 1)\n"
WAIT = "aiex.npu.dma_wait {symbol = @out}\n"


def transfer(pattern: str) -> Changes:
    return (("[0,0,0,0][4,1,1,32][32,0,0,1]", pattern),)


def of_more(pattern: str) -> Changes:
    """The same of an argument of 2**33 words."""
    sent = SENT.replace("[0,0,0,0][4,1,1,32][32,0,0,1]", pattern).replace("<4096", "<8589934592")
    return (("%x: memref<4096", "%x: memref<8589934592"), (SENT, sent))


SEQUENCES: dict[str, Case] = {
    "a loop of no steps": (
        transfer("[0,0,0,0][4,1,0,32][32,0,0,1]"),
        "pattern",
        "sequence @run, step 2, transfer of @in",
        "sizes (4, 1, 0, 32) must be positive",
        "leave loops that are not needed at 1",
    ),
    "too many runs": (
        transfer("[0,0,0,0][65,1,1,32][32,0,0,1]"),
        "iterations",
        "sequence @run, step 2, transfer of @in",
        "65 runs exceed 64",
        "split them",
    ),
    "a wrap too wide for a shim": (
        transfer("[0,0,0,0][1,1,2,1024][0,0,2048,1]"),
        "pattern",
        "transfer of @in",
        "sizes (1, 1, 2, 1024) exceed 1023 words",
        "contiguous or shorter",
    ),
    "a stride too wide for a shim": (
        of_more("[0,0,0,0][1,2,1,32][0,1048577,0,1]"),
        "pattern",
        "transfer of @in",
        "stride of 4194308 B exceeds 4194304 B",
        "closer together",
    ),
    "a run too long for a shim": (
        of_more("[0,0,0,0][1,1,1,4294967296][0,0,0,1]"),
        "pattern",
        "transfer of @in",
        "exceed a descriptor's 32-bit length",
        "split it",
    ),
    "a transfer of nothing": (
        transfer("[0,0,0,0][1,0,1,32][0,1,0,1]"),
        "pattern",
        "transfer of @in",
        "sizes (1, 0, 1, 32) must be positive",
        "leave loops that are not needed at 1",
    ),
    "a transfer of part of a word": (
        (
            ("%x: memref<4096xi32>", "%x: memref<4096xi8>"),
            (SENT, SENT.replace("[4,1,1,32][32", "[1,1,1,6][0").replace("i32", "i8")),
        ),
        "granularity",
        "transfer of @in",
        "6 elements of 1 B are not a multiple of 4 B",
        "move whole words",
    ),
    "a transfer from between words": (
        (
            ("%x: memref<4096xi32>", "%x: memref<4096xi8>"),
            (SENT, SENT.replace("[0,0,0,0]", "[0,0,0,2]").replace("i32", "i8")),
        ),
        "granularity",
        "transfer of @in",
        "offset 2 B must be a multiple of 4",
        "start a view there",
    ),
    "a descriptor that a shim does not have": (
        (("{id = 1", "{id = 16"),),
        "descriptors",
        "transfer of @in",
        "descriptor 16 does not exist; a shim has 16",
        "use its descriptor again",
    ),
    "a transfer past the end": (
        transfer("[0,0,0,1][1,1,1,4096][0,0,0,1]"),
        "arguments",
        "transfer of @in",
        "reaches element 4,096 of %x, which has 4,096",
        "declare it larger",
    ),
    "a race": (
        ((SENT, SENT.replace("%x[0,0,0,0][4,1,1,32][32", "%y[0,0,0,0][2,1,1,16][112")),),
        "races",
        "sequence @run, step 2",
        "shim (0, 0) MM2S 0 reads words that shim (0, 0) S2MM 0 may still be writing",
        "wait for that task's token first",
    ),
    "a descriptor in flight": (
        ((SENT, SENT + SENT),),
        "descriptors",
        "sequence @run, step 3",
        "descriptor 1 of column 0 is changed while a task of shim (0, 0) MM2S 0 that uses it",
        "wait for that task's token first",
    ),
    "an overfull start queue": (
        ((SENT, "".join(SENT.replace("id = 1", f"id = {n}") for n in range(1, 6))),),
        "start queue",
        "sequence @run, step 6",
        "5 tasks on shim (0, 0) MM2S 0, whose start queue holds 4",
        "wait for a token",
    ),
    "a token that nobody waits for": (
        ((WAIT, ""),),
        "tokens",
        "end of stream",
        "the task with descriptor 0 on shim (0, 0) S2MM 0 is never waited for",
        "add a wait",
    ),
    "a token that nobody sends": (
        ((WAIT, WAIT + WAIT),),
        "tokens",
        "sequence @run, step 4",
        "waits for a token of shim (0, 0) S2MM 0, but no task there will send one",
        "ask a transfer",
    ),
    "a wait for what has no channel": (
        ((WAIT, WAIT + WAIT.replace("@out", "@in_1")),),
        "wiring",
        "sequence @run, step 4",
        "@in_1 has no shim channel; FIFOs that have one: in, out",
        "name one of these",
    ),
    "a parameter that is not there": (
        ((WRITE, WRITE.replace("@rtp", "@rpt")),),
        "parameters",
        "sequence @run, step 0",
        "there is no buffer @rpt; known: rtp",
        "name one of these",
    ),
    "a parameter without an address": (
        ((", address = 1024 : i32", ""),),
        "parameters",
        "sequence @run, step 0",
        "buffer @rtp has no address attribute",
        "pin it",
    ),
    "a word past the parameter": (
        ((WRITE, WRITE.replace("0, 1", "16, 1")),),
        "parameters",
        "sequence @run, step 0",
        "word 16 is outside buffer @rtp",
        "it has words 0 to 15",
    ),
    "a parameter that changes too late": (
        ((SENT, SENT + WRITE),),
        "parameters",
        "sequence @run, step 3",
        "writes a parameter of core (0, 2) while shim (0, 0) S2MM 0 may be running",
        "write parameters first",
    ),
    "six data buffers": (
        (("%x: ", "".join(f"%x{n}: memref<4xi32>, " for n in range(4)) + "%x: "),),
        "arguments",
        "sequence @run",
        "6 data buffers where a launch has 5",
        "put several into one",
    ),
}
