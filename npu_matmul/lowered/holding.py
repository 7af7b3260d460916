"""How much each block of a core's program holds: a count over its control flow, without running it.

Locks that a DMA channel takes and gives in one hand-over belong together: of such a group a core
acquires what the channel releases, and gives it back. Each block must be entered holding the same
number whichever way one comes. Where lowering dropped an acquire (see
:mod:`npu_matmul.balance`), it is not.
"""

from __future__ import annotations

from collections.abc import Iterator

from xdsl.ir import Block

from npu_matmul.lowered.module import CoreCode, Lock, LoweredModule, UseLock
from npu_matmul.lowered.reading import use_lock
from npu_matmul.mlir import aie_lowered as ops
from npu_matmul.mlir.reader import place
from npu_matmul.violation import Violation

Group = tuple[Lock, ...]
Held = dict[Group, int]


def lock_groups(module: LoweredModule) -> list[Group]:
    """The locks of each ring of buffers: the smallest sets that no hand-over leaves."""
    group_of: dict[Lock, Group] = {}
    for span in module.spans:
        if span.acquires is None or span.releases is None:
            continue
        pair = span.acquires.lock, span.releases.lock
        merged: Group = tuple(
            dict.fromkeys(lock for end in pair for lock in group_of.get(end, (end,)))
        )
        for lock in merged:
            group_of[lock] = merged
    return list(dict.fromkeys(group_of.values()))


def impatient(use: UseLock, groups: dict[Lock, Group]) -> tuple[str, str] | None:
    """What is wrong with an exact acquire, and its cure: when more units than it waits for have
    come, it waits on, for ever if its own side takes no others."""
    total = sum(lock.initial for lock in groups.get(use.lock, ()))
    if not use.exact or total <= use.amount:
        return None
    found = f"it waits for exactly {use.amount} of {use.lock}, which can come to stand at {total}"
    return found, "wait for at least so many: AcquireGreaterEqual"


def unbalanced_cores(module: LoweredModule) -> Iterator[Violation]:
    """Where a core's program holds a different number than on another way to the same place."""
    group_of = {lock: group for group in lock_groups(module) for lock in group}
    for core in module.cores:
        yield from _unanswered(core, module, group_of)
        yield from _unbalanced(core, module, group_of)


def _unanswered(
    core: CoreCode, module: LoweredModule, group_of: dict[Lock, Group]
) -> Iterator[Violation]:
    """A core acquires locks that a channel releases, and releases those that one acquires."""
    given = {span.releases.lock for span in module.spans if span.releases is not None}
    taken = {span.acquires.lock for span in module.spans if span.acquires is not None}
    for op in core.body.walk():
        if isinstance(op, ops.UseLockOp):
            use = use_lock(op, module.values)
            fault = impatient(use, group_of)
            if fault is not None:
                yield Violation("locks", f"{use.place}: {core.tile}", *fault)
            if use.lock in group_of and use.lock not in (given if use.acquires else taken):
                verbs = ("acquires", "releases") if use.acquires else ("releases", "acquires")
                found = f"it {verbs[0]} {use.lock}, which no channel {verbs[1]}"
                others = [str(lock) for lock in group_of[use.lock] if lock is not use.lock]
                cure = f"{' or '.join(others)} may be meant"
                yield Violation("locks", f"{use.place}: {core.tile}", found, cure)


def _unbalanced(
    core: CoreCode, module: LoweredModule, group_of: dict[Lock, Group]
) -> Iterator[Violation]:
    """Follows the blocks, each once; says of each group only the first place."""
    entered: dict[Block, Held] = {core.body.blocks[0]: {}}
    pending = [core.body.blocks[0]]
    reported: set[Group] = set()
    while pending:
        block = pending.pop()
        held = dict(entered[block])
        for op in block.ops:
            if isinstance(op, ops.UseLockOp):
                yield from _count(use_lock(op, module.values), core, group_of, held, reported)
        held = {group: count for group, count in held.items() if count}
        last = block.last_op
        for following in () if last is None else reversed(last.successors):
            if following in entered:
                yield from _compare(core, following, held, entered[following], reported)
            else:
                entered[following] = held
                pending.append(following)


def _count(
    use: UseLock, core: CoreCode, group_of: dict[Lock, Group], held: Held, reported: set[Group]
) -> Iterator[Violation]:
    group = group_of.get(use.lock)
    if group is None:
        return
    held[group] = held.get(group, 0) + (use.amount if use.acquires else -use.amount)
    if held[group] < 0 and group not in reported:
        reported.add(group)
        found = f"it releases {use.lock} without holding anything of {_names(group)}"
        where = f"{use.place}: {core.tile}"
        yield Violation("balance", where, found, "acquire it first, in every step")


def _compare(
    core: CoreCode, block: Block, held: Held, other: Held, reported: set[Group]
) -> Iterator[Violation]:
    """A block that is entered in two ways must be so with the same counts."""
    for group in {**held, **other}:
        counts = held.get(group, 0), other.get(group, 0)
        if counts[0] != counts[1] and group not in reported:
            reported.add(group)
            start = block.first_op
            where = f"{'' if start is None else place(start)}: {core.tile}"
            found = (
                f"this block is entered holding {max(counts)} of {_names(group)}, and "
                f"holding {min(counts)}: an acquire or a release is missing on one of the ways"
            )
            cure = "in the design, balance acquire and release in each block: peel the first "
            yield Violation("balance", where, found, f"{cure}step out of the loop")


def _names(group: Group) -> str:
    return " and ".join(map(str, group))
