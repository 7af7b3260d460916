"""Many files over processes of this machine, or over the workers of a Dask cluster.

Each process makes its own pipeline once. Reports come in the order in which files are done; a
process that dies costs its own file only.
"""

from __future__ import annotations

import multiprocessing
import os
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, ProcessPoolExecutor, wait
from concurrent.futures.process import BrokenProcessPool
from contextlib import contextmanager
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

from npu_matmul.host.threads import THREAD_VARIABLES
from npu_matmul.timeline import listening
from npu_matmul.timeline.processes import recorded
from npu_matmul.whisper.encode import FileReport, Job, Settings, encode_job, release

CONNECT_S = 10  # until a scheduler must have answered
NPU_RESOURCE = "NPU"  # what a Dask worker declares: one, as it has one NPU

Lost = tuple[Job, Exception]  # a file without a report, and why


def over_processes(
    settings: Settings,
    jobs: Sequence[Job],
    processes: int,
    encode: Callable[[Settings, Job], FileReport] = encode_job,
) -> Iterator[FileReport]:
    """Encode files in ``processes`` processes, which share this machine's cores among them.

    A file whose process dies (for want of memory, say) is tried once more in a process of its own,
    as another file's may have been the cause. Where only some processes can make their pipeline,
    there are as many fewer from then on as could not.

    Raises:
        What making the pipeline raises, where no process could make one.
    """
    waiting, any_made = deque(jobs), False
    while waiting:
        lost: list[Lost] = []
        with _threads_each(processes), _pool(processes) as pool:
            work = partial(_submit, pool, encode, settings)
            for report in _until_one_is_lost(work, waiting, processes, lost):
                any_made = True
                yield report
        died = [job for job, error in lost if isinstance(error, BrokenProcessPool)]
        failed = [(job, error) for job, error in lost if not isinstance(error, BrokenProcessPool)]
        if failed and not any_made:
            raise failed[0][1]
        yield from (_alone(settings, job, encode) for job in died)
        if processes == 1:
            yield from (_failure(job, error) for job, error in failed)
        else:
            waiting.extend(job for job, _ in failed)
            processes = max(1, processes - len(failed))


def _until_one_is_lost(
    submit: Callable[[Job], Future[Any]], waiting: deque[Job], processes: int, lost: list[Lost]
) -> Iterator[FileReport]:
    """Reports of files that are taken from ``waiting``, as many at a time as there are processes.
    After the first without a report, those that are running are waited for, and no other begins."""
    running: dict[Future[Any], Job] = {}
    reports: list[FileReport] = []
    while True:
        while waiting and not lost and len(running) < processes:
            try:
                running[submit(waiting[0])] = waiting[0]
            except BrokenProcessPool:  # by a process that had nothing to do
                break
            waiting.popleft()
        yield from reports
        if not running:
            return
        reports = []
        for future in wait(running, return_when=FIRST_COMPLETED).done:
            job = running.pop(future)
            try:
                reports.append(_result(future))
            except Exception as error:  # whatever the pipeline, or its process, ended with
                lost.append((job, error))


def _alone(
    settings: Settings, job: Job, encode: Callable[[Settings, Job], FileReport]
) -> FileReport:
    with _threads_each(1), _pool(1) as pool:
        try:
            return _result(_submit(pool, encode, settings, job))
        except BrokenProcessPool:
            return FileReport(job.audio, error="the process that encoded it died")
        except Exception as error:
            return _failure(job, error)


def over_dask(
    settings: Settings,
    jobs: Sequence[Job],
    address: str,
    encode: Callable[[Settings, Job], FileReport] = encode_job,
) -> Iterator[FileReport]:
    """Encode files on the workers of the Dask scheduler at ``address``, one file per NPU at a time.

    Workers must be started with ``--resources "NPU=1"``, and see audio, weights and outputs under
    the same absolute paths.

    Raises:
        ModuleNotFoundError: the extra is not installed.
        OSError: there is no scheduler at that address.
        ValueError: no worker has declared an NPU.
    """
    try:
        from distributed import Client, as_completed
    except ModuleNotFoundError as error:
        raise ModuleNotFoundError(
            "--dask needs the package distributed, which is not installed: "
            "pip install 'npu-matmul[whisper,dask]'"
        ) from error
    with Client(address, timeout=CONNECT_S) as client:
        workers = client.scheduler_info(n_workers=-1)["workers"]
        if not any(NPU_RESOURCE in worker["resources"] for worker in workers.values()):
            raise ValueError(
                f"none of the {len(workers)} workers at {address} declares an NPU: start them "
                f'with: dask worker {address} --nthreads 1 --resources "{NPU_RESOURCE}=1"'
            )
        one_npu = {"resources": {NPU_RESOURCE: 1}, "pure": False}
        futures = {
            client.submit(encode, _absolute(settings), _absolute_job(job), **one_npu): job
            for job in jobs
        }
        try:
            for future in as_completed(futures):
                yield _outcome(future, futures[future])
        finally:  # workers live on: they keep no encoder for a client who may never return
            client.run(release, on_error="ignore")


def _submit(pool: ProcessPoolExecutor, work: Callable[..., FileReport], *args: Any) -> Future[Any]:
    """Let a process do it; and tell of it, where a timeline is recorded."""
    if listening.listener is None:
        return pool.submit(work, *args)
    return pool.submit(recorded, work, *args)


def _result(future: Future[Any]) -> FileReport:
    done = future.result()
    if isinstance(done, FileReport):
        return done
    report: FileReport
    report, part = done
    if listening.listener is not None:
        listening.listener.join(part)
    return report


def _outcome(future: Any, job: Job) -> FileReport:
    """Of a Dask task: its report, with the names that were given, or why there is none."""
    if future.status == "finished":
        report: FileReport = future.result()
        return replace(report, audio=job.audio, output=job.output)
    return _failure(job, future.exception())


def _failure(job: Job, error: BaseException) -> FileReport:
    return FileReport(job.audio, error=f"{type(error).__name__}: {error}")


def _absolute(settings: Settings) -> Settings:
    if settings.weights is None:
        return settings
    return Settings(**{**vars(settings), "weights": str(Path(settings.weights).resolve())})


def _absolute_job(job: Job) -> Job:
    output = None if job.output is None else str(Path(job.output).resolve())
    return Job(str(Path(job.audio).resolve()), output)


def _pool(processes: int) -> ProcessPoolExecutor:
    # "spawn": a forked process would share an open device, and threads that it does not have
    return ProcessPoolExecutor(processes, mp_context=multiprocessing.get_context("spawn"))


@contextmanager
def _threads_each(processes: int) -> Iterator[None]:
    """The environment of processes that are started meanwhile: each its share of the cores."""
    share = str(max(1, len(os.sched_getaffinity(0)) // processes))
    before = {name: os.environ.get(name) for name in THREAD_VARIABLES}
    os.environ.update({name: share for name, value in before.items() if value is None})
    try:
        yield
    finally:
        for name, value in before.items():
            if value is None:
                os.environ.pop(name, None)
