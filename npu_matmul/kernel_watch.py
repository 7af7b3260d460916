"""Whether the kernels that can be found are still those that were found before."""

from __future__ import annotations

import os
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

from npu_matmul.kernel import KERNELS_VARIABLE, MANIFEST, search_path


def kernels_version() -> tuple[str, tuple[int, ...]]:
    """Equal for as long as the same kernels are found with the same manifests, and no file beside
    them comes or goes: what was derived from them then holds. Costs a few microseconds, where
    finding them costs hundreds."""
    named = os.environ.get(KERNELS_VARIABLE, "")
    watched = _watched.get(named)
    if watched is None or stamps(watched.folders) != watched.stamps:
        watched = _watched[named] = _watch()
    return named, watched.stamps + stamps(watched.manifests)


@dataclass(frozen=True)
class _Watched:
    """The folders whose entries say which kernels there are, as last seen, and the manifests."""

    folders: tuple[Path, ...]
    stamps: tuple[int, ...]
    manifests: tuple[Path, ...]


_watched: dict[str, _Watched] = {}


def _watch() -> _Watched:
    places = search_path()
    kernels = [child for place in places if place.is_dir() for child in sorted(place.iterdir())]
    folders = tuple(folder for folder in (*places, *kernels) if folder.is_dir())
    manifests = tuple(kernel / MANIFEST for kernel in kernels)
    return _Watched(folders, stamps(folders), manifests)


def stamps(paths: Iterable[Path]) -> tuple[int, ...]:
    """When each was last written, in ns since the epoch; 0 for what is not there."""
    return tuple(_stamp(path) for path in paths)


def _stamp(path: Path) -> int:
    try:
        return path.stat().st_mtime_ns
    except OSError:
        return 0
