"""Work on many machines, by Dask: units of work to workers that may come, go and die, and results in order.

The scheduler sends units to workers. What a lost worker had in hand goes to others; a unit that has ended several of
them is given up with an error of its own. Workers need this program in the same version, and the models and the sound
under the same paths. Units and results travel as pickles, so a scheduler is to be trusted as one's own machine is: give
addresses of one's own only, with TLS (`tls://`) where others can reach them.

Rocklin, "Dask: parallel computation with blocked algorithms and task scheduling", SciPy 2015.
"""

from __future__ import annotations

import logging
import re
import signal
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import ExitStack, contextmanager, suppress
from importlib import import_module
from pathlib import Path
from typing import Any, TypeVar

from knn_cli import __version__
from knn_cli.core.errors import KnnError
from knn_cli.core.toml_files import read_toml
from knn_cli.core.tree_reduction import merged

__all__ = ["Cluster", "opened_cluster"]

LOST_WORKERS = 3  # that a unit may end before it is given up
UNITS_PER_THREAD = 2  # that are with the scheduler and not finished
MOST_WAITING = 64  # finished units per thread that wait for one before them
CONNECT_SECONDS = 20.0
MOST_WORKERS = 10_000
_LOCAL = re.compile(r"local:(\d{1,4})")
_ADDRESS = re.compile(r"(tcp|tls|ucx|ws|wss)://\S+")
_KINDS = {  # of a cluster's queue -> class of dask_jobqueue
    **{"slurm": "SLURMCluster", "pbs": "PBSCluster", "sge": "SGECluster", "lsf": "LSFCluster", "oar": "OARCluster"},
    **{"htcondor": "HTCondorCluster", "moab": "MoabCluster", "local": "LocalCluster"},
}
_HINT = "It is tcp://HOST:PORT of a scheduler, local:N for N processes here, or a TOML file for a queue such as SLURM."

Unit = TypeVar("Unit")
Result = TypeVar("Result")


class Cluster:
    """A connected scheduler.

    Parameters
    ----------
    client : distributed.Client

    Attributes
    ----------
    dashboard : str
        Address of the page that shows what is going on, "" where there is none.
    sound_seconds : float
        Seconds of sound that workers have read, as whoever sends them units counts it.
    """

    def __init__(self, client: Any) -> None:
        self._client = client
        self.dashboard: str = client.dashboard_link if _has_dashboard() else ""
        self.sound_seconds = 0.0
        self._sent: set[Any] = set()  # what `ordered` has with the scheduler

    @property
    def threads(self) -> int:
        """Units that workers do at once now."""
        return sum(self._client.nthreads().values())

    def ordered(
        self, work: Callable[[Unit], Result], units: Iterable[Unit]
    ) -> Iterator[tuple[Unit, Result | KnnError]]:
        """Do units of work, and yield each with its result, in their order.

        Parameters
        ----------
        work : callable
            A function of a module, which is called in a worker. A KnnError that it raises is raised here.
        units : iterable
            Taken as they are needed.

        Yields
        ------
        unit
        result : what `work` returned, or KnnError
            An error for a unit that has ended several workers, or was with workers that others ended: see `alone`.

        Raises
        ------
        KnnError
            The scheduler or all workers are gone, or `work` raises it.
        """
        client: Any = import_module("distributed.client")

        left = iter(units)
        sent: deque[tuple[Unit, Any]] = deque()
        more = True
        try:
            while True:
                running = [future for _, future in sent if not future.done()]
                threads = max(1, self.threads)
                while more and len(running) < UNITS_PER_THREAD * threads and len(sent) < MOST_WAITING * threads:
                    try:
                        unit = next(left)
                    except StopIteration:
                        more = False
                        break
                    future = self._client.submit(work, unit, pure=False)
                    self._sent.add(future)
                    sent.append((unit, future))
                    running.append(future)
                if not sent:
                    return
                while sent and sent[0][1].done():
                    unit, future = sent.popleft()
                    self._sent.discard(future)
                    yield unit, self._result(future)
                if sent and (not more or len(running) >= UNITS_PER_THREAD * threads):
                    with suppress(TimeoutError):  # so that workers that come meanwhile get units
                        running = [future for _, future in sent if not future.done()]
                        client.wait(running, 1.0, client.FIRST_COMPLETED)
        finally:
            self._sent.difference_update(future for _, future in sent)
            with suppress(Exception):  # whatever the connection says, the work is over
                self._client.cancel([future for _, future in sent])

    def alone(self, work: Callable[[Unit], Result], unit: Unit) -> Result | KnnError:
        """Do a unit while the workers have nothing else in hand: a KnnError if it ends several, else as `ordered`."""
        client: Any = import_module("distributed.client")
        client.wait([*self._sent])
        future = self._client.submit(work, unit, pure=False)
        client.wait([future])
        result: Result | KnnError = self._result(future)
        return result

    def reduced(
        self, work: Callable[[Unit], Result], units: Iterable[Unit], merge: Callable[[Result, Result], Result], /
    ) -> Result:
        """Do units of work and merge their results in the workers; a `tree_reduction.TreeReduction`.

        No more results are held by the cluster than its threads make at once and the tree has levels.

        Raises
        ------
        KnnError
            A unit has ended several workers, the scheduler is gone, or `work` raises it.
        """
        client: Any = import_module("distributed.client")
        running: list[Any] = []  # nothing else may hold what is finished, so that the cluster lets go of it

        def leaves() -> Iterator[Any]:
            for unit in units:
                while len(running) >= UNITS_PER_THREAD * max(1, self.threads):
                    with suppress(TimeoutError):
                        client.wait(running, 1.0, client.FIRST_COMPLETED)
                    for future in [future for future in running if future.done()]:
                        running.remove(future)
                        self._check(future)
                running.append(self._client.submit(work, unit, pure=False))
                yield running[-1]

        total = merged(leaves(), lambda left, right: self._client.submit(merge, left, right, pure=False))
        client.wait([total])
        self._check(total)
        result: Result = total.result()
        return result

    def _check(self, future: Any) -> None:
        """Raise the error of a unit that has one."""
        if future.status != "finished" and isinstance(error := self._result(future), KnnError):
            raise error

    def _result(self, future: Any) -> Any:
        from distributed import KilledWorker

        error = future.exception() if future.status == "error" else None
        if isinstance(error, KilledWorker):
            return KnnError(
                f"It ended {LOST_WORKERS} workers, one after the other.", "They may have too little memory for it."
            )
        if future.status not in ("finished", "error"):
            raise KnnError("The cluster's scheduler is gone.", "Repeat the command: finished work is kept.")
        if error is not None:
            raise error
        return future.result()


@contextmanager
def opened_cluster(where: str) -> Iterator[Cluster]:
    """Connect to a cluster, or start one that ends with the block.

    Parameters
    ----------
    where : str
        Address of a Dask scheduler, "local:N" for N processes on this machine, or a TOML file: `queue`, one of slurm,
        pbs, sge, lsf, oar, htcondor, moab and local, `workers`, how many jobs are asked for, and a table `[job]` with
        arguments of dask_jobqueue's cluster of that queue, such as cores, memory, walltime and account.

    Yields
    ------
    Cluster

    Raises
    ------
    KnnError
        `where` is none of these, a package is missing, the scheduler is not there, or its workers have another version.

    Examples
    --------
    >>> from knn_cli.core.cluster import opened_cluster
    >>> with opened_cluster("remote"):
    ...     pass
    Traceback (most recent call last):
    knn_cli.core.errors.KnnError: remote names no cluster. It is tcp://HOST:PORT of a scheduler, ...
    """
    local, path = _LOCAL.fullmatch(where), Path(where)
    is_queue = path.suffix.lower() == ".toml"
    if not (local or is_queue or _ADDRESS.fullmatch(where)) or (local and not int(local[1]) >= 1):
        raise KnnError(f"{where} names no cluster.", _HINT)
    queue = _read_queue(path) if is_queue else None
    try:
        dask, distributed = import_module("dask"), import_module("distributed")
        jobqueue = import_module("dask_jobqueue") if queue else None
    except ImportError as error:
        name = (error.name or "distributed").partition(".")[0].replace("_", "-")
        raise KnnError(f"A cluster needs the package {name}.", "pip install 'knn-cli[cluster]'") from error
    logging.getLogger("distributed").setLevel(logging.CRITICAL)  # what matters of it is said here
    settings = {"distributed.scheduler.allowed-failures": LOST_WORKERS - 1, "distributed.worker.daemon": True}
    with ExitStack() as held, dask.config.set(settings):
        try:
            if local is not None:
                options: dict[str, Any] = {
                    "n_workers": int(local[1]),
                    "threads_per_worker": 1,
                    "silence_logs": logging.CRITICAL,
                }
                options["dashboard_address"] = ":0" if _has_dashboard() else None
                started: Any = held.enter_context(distributed.LocalCluster(**options))
            elif queue is not None:
                started = held.enter_context(_started(jobqueue, queue, path))
            else:
                started = where
            client = held.enter_context(distributed.Client(started, timeout=CONNECT_SECONDS))
        except (OSError, TimeoutError) as error:
            raise KnnError(f"No scheduler answers at {where}: {error}.", "Start it, or check the address.") from error
        client.register_plugin(_prepared_worker(own=local is not None))
        yield Cluster(client)


def _read_queue(path: Path) -> Mapping[str, Any]:
    """What a TOML file says of a queue. KnnError if it is not there or says something else."""
    table = read_toml(path, "cluster", "It has queue, workers and a table [job].")
    unknown = table.keys() - {"queue", "workers", "job"}
    workers, job = table.get("workers", 1), table.get("job", {})
    if unknown:
        raise KnnError(f"{path} has unknown keys: {', '.join(sorted(unknown))}.", "It has queue, workers and [job].")
    if table.get("queue") not in _KINDS:
        raise KnnError(f"{path} has the queue {table.get('queue')!r}.", f"Known: {', '.join(_KINDS)}.")
    if type(workers) is not int or not 1 <= workers <= MOST_WORKERS or not isinstance(job, dict):
        raise KnnError(f"{path} asks for {workers!r} workers.", f"It is a number from 1 to {MOST_WORKERS}.")
    return {"queue": table["queue"], "workers": workers, "job": job}


def _started(jobqueue: Any, queue: Mapping[str, Any], path: Path) -> Any:
    """A cluster that has asked its queue for jobs."""
    kind = _KINDS[queue["queue"]]
    module = import_module("dask_jobqueue.local") if kind == "LocalCluster" else jobqueue
    try:
        cluster = getattr(module, kind)(**{"cores": 1, "processes": 1, "memory": "4GB", **queue["job"]})
        cluster.scale(jobs=queue["workers"])
    except (TypeError, ValueError, RuntimeError) as error:
        raise KnnError(
            f"{path} starts no cluster: {error}.", "Its table [job] has arguments of dask_jobqueue's cluster."
        ) from error
    return cluster


def _has_dashboard() -> bool:
    """Whether the package is there that draws Dask's page."""
    with suppress(ImportError):
        import_module("bokeh")
        return True
    return False


def _prepared_worker(*, own: bool) -> Any:
    """A plugin that prepares each worker, also those that come later.

    Workers of our own leave Ctrl-C to the process that has started them.
    """
    from distributed import WorkerPlugin

    class PreparedWorker(WorkerPlugin):
        name = "knn"

        def setup(self, worker: Any) -> None:
            prepare_worker(__version__, own)

    return PreparedWorker()


def prepare_worker(version: str, own: bool) -> None:
    """In a worker: KnnError if its version of this program is another; one thread for each operation of torch."""
    if version != __version__:
        raise KnnError(f"A worker has knn {__version__}, not {version}.", "Install the same version everywhere.")
    if own:
        with suppress(ValueError):  # in another thread than the main one
            signal.signal(signal.SIGINT, signal.SIG_IGN)
