r"""A map over the workers of a Dask cluster that exists already: `dask://HOST:PORT` is the address of its scheduler.

A function is scattered once to every worker, by its digest; what travels for each item is one message there and one
back. A worker that dies is noticed by the scheduler, which gives its item to another; where the cluster cannot do an
item at all, it is done here. Nothing is left on the cluster when the block ends.

The bits are those of any other engine where the workers have the same NumPy on the same kind of processor: another
kind has another matrix kernel, which rounds otherwise.
"""

from __future__ import annotations

import contextlib
import functools
import logging
import socket
import time
import uuid
import warnings
from collections import Counter, deque
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from queue import Empty, SimpleQueue
from typing import Any

from .parcels import Parcel, aligned, answer_of, opened, packed, result_of, unpacked
from .threads import Then, at_work, ignored, one_matrix_thread

SECONDS_TO_CONNECT = 4.0
SECONDS_WITHOUT_WORKERS = 10.0
SAME = ("lora_np", "numpy")  # what must have one version everywhere
MOST_TRIES = 3


class ClusterError(ConnectionError):
    """A cluster cannot be used; the message says which and why."""


@contextmanager
def cluster_map(address: str, workers: int | None = None) -> Iterator[ClusterMap]:
    """A map over a cluster; `workers` is how many items may be there at once, all of them when None.

    Raises ImportError without Dask, and ClusterError where the scheduler does not answer, has no worker, or where some
    of them have another version of lora_np or NumPy.
    """
    client = _connected(address)
    try:
        found = client.get_versions(packages=list(SAME))
        check_versions(address, found)
        with one_matrix_thread():
            run = ClusterMap(client, address, workers)
            try:
                yield run
            finally:
                run.end()
    finally:
        with contextlib.suppress(Exception):  # it may be gone
            client.close(timeout=2)


def check_versions(address: str, found: Mapping[str, Any]) -> None:
    """Raise ClusterError unless there is a worker, and all have the versions that are here."""
    if not found["workers"]:
        raise ClusterError(f"the scheduler at {address} has no worker: start some with dask worker {address}")
    ours = found["client"]["packages"]
    for place, about in {"the scheduler": found["scheduler"], **found["workers"]}.items():
        for name in SAME:
            theirs = about["packages"].get(name)
            if theirs != ours[name]:
                where = place if place == "the scheduler" else f"worker {place}"
                has = f"{name} {theirs}" if theirs else f"no {name}"
                raise ClusterError(
                    f"{where} of {address} has {has}, and here it is {ours[name]}: they must be the same"
                )


class ClusterMap:
    """`map(function, items, then) -> list` over the workers of a cluster.

    moved   bytes that the last call sent and received, beside functions   shares  how many items it sent
    sent    bytes of functions, so far, to each worker
    """

    ready_after: float | None = None

    def __init__(self, client: Any, address: str, workers: int | None) -> None:
        self._client, self._address, self._most = client, address, workers
        self.moved = self.sent = self.shares = 0
        self._function: Any = None
        self._parcel: Parcel | None = None
        self._block: Any = None  # the future of what was scattered
        self._futures: dict[Any, int] = {}
        self._over: SimpleQueue[Any] = SimpleQueue()

    def __call__(self, function: Callable[[Any], Any], items: Sequence[Any], then: Then = ignored) -> list[Any]:
        results: dict[int, Any] = {}
        todo, tries = deque(range(len(items))), Counter[int]()
        self.moved = self.shares = 0

        def finish(index: int, result: Any) -> None:
            results[index] = result
            then(index, result)

        try:
            if items:
                self._hold(function)
            while len(results) < len(items):
                while todo and len(self._futures) < (self._most or len(items)):
                    index = todo.popleft()
                    self._futures[self._submitted(items[index])] = index
                for future in self._done():
                    index = self._futures.pop(future)
                    message = self._answer(future)
                    if message is not None:
                        self.moved += len(message)
                        finish(index, result_of(message))
                    elif tries[index] < MOST_TRIES and self._has_workers():
                        tries[index] += 1
                        self._scatter()  # what was there may have died with a worker
                        todo.appendleft(index)
                    else:
                        _warn(f"{self._address} could not do item {index + 1} ({_why(future)}): it is done here")
                        finish(index, function(items[index]))
        finally:
            self._cancel()
        return [results[index] for index in range(len(items))]

    def end(self) -> None:
        """Let go of everything on the cluster."""
        self._cancel()
        self._block = None

    def _hold(self, function: Any) -> None:
        if function is not self._function:
            parcel = Parcel.of(function)
            self._function = function
            if self._parcel is None or self._parcel.digest != parcel.digest:
                self._parcel = parcel
                self.sent += parcel.nbytes
                self._scatter()

    def _scatter(self) -> None:
        assert self._parcel is not None
        key = f"lora_np-{self._parcel.digest[:32]}-{uuid.uuid4().hex[:8]}"
        with contextlib.suppress(Exception):  # without workers it fails, and so will what needs it
            self._block = self._client.scatter({key: b"".join(self._parcel.pieces())}, broadcast=True, timeout=10)[key]

    def _submitted(self, item: Any) -> Any:
        assert self._parcel is not None
        message = packed(item)
        self.moved += len(message)
        self.shares += 1
        about = self._parcel.digest, self._parcel.sizes
        key = f"lora_np-item-{uuid.uuid4().hex}"
        future = self._client.submit(applied, about, self._block, message, key=key, pure=False)
        future.add_done_callback(self._over.put)
        return future

    def _done(self) -> list[Any]:
        """Futures that are over, at least one; all of them once no worker is left."""
        since = time.monotonic()
        while True:
            with contextlib.suppress(Empty):
                future = self._over.get(timeout=1.0)
                if future in self._futures:  # and not one that was cancelled
                    return [future]
            if self._has_workers():
                since = time.monotonic()
            elif time.monotonic() - since > SECONDS_WITHOUT_WORKERS:
                return list(self._futures)

    def _answer(self, future: Any) -> bytes | None:
        """What a worker answered; None where none could."""
        if future.status != "finished":
            return None
        try:
            return bytes(future.result(timeout=10))
        except Exception:  # it was there, and its worker died before it could be fetched
            return None

    def _has_workers(self) -> bool:
        with contextlib.suppress(Exception):
            return bool(self._client.nthreads())
        return False

    def _cancel(self) -> None:
        if self._futures:
            with contextlib.suppress(Exception):
                self._client.cancel(list(self._futures), force=True)
        self._futures = {}


def applied(about: tuple[str, tuple[int, ...]], block: bytes, message: bytes) -> bytes:
    """On a worker: the answer to one item."""
    at_work()
    _prepare()
    return answer_of(_opened(*about, block), unpacked(message))


@functools.cache
def _prepare() -> None:
    """Once for each process: the matrix library has one thread from now on, as it has here."""
    from threadpoolctl import threadpool_limits

    threadpool_limits(limits=1, user_api="blas")


_held: dict[str, Callable[[Any], Any]] = {}  # on a worker: the function that it holds, by its digest


def _opened(digest: str, sizes: tuple[int, ...], block: bytes) -> Callable[[Any], Any]:
    if digest not in _held:
        _held.clear()
        _held[digest] = opened(sizes, aligned(block))
    return _held[digest]


def _connected(address: str) -> Any:
    try:
        from distributed import Client
    except ImportError as error:
        raise ImportError(f'a dask:// engine needs Dask ({error}): pip install "lora_np[cluster]"') from None
    host, _, port = address.removeprefix("dask://").rpartition(":")
    if not (host and port.isdecimal() and 0 < int(port) < 1 << 16):
        raise ValueError(f"the engine of a cluster is dask://HOST:PORT, got {address!r}")
    logging.getLogger("distributed").setLevel(logging.CRITICAL)  # what matters is said here, in one line
    client: Any = Client.__new__(Client)
    try:
        _check_answer(host, int(port))
        client.__init__(f"tcp://{host}:{port}", timeout=SECONDS_TO_CONNECT, set_as_default=False, name="lora_np")
        return client
    except Exception as error:  # whatever else may listen there
        client.status = "closed"  # or else it waits for an answer once more, when it is collected
        why = str(error).partition("\n")[0] or type(error).__name__
        raise ClusterError(f"no scheduler of Dask answers at {address}: {why}") from None


def _check_answer(host: str, port: int) -> None:
    """Raise OSError unless whoever listens there speaks first, as a scheduler does: Dask itself would wait for ever."""
    with socket.create_connection((host, port), SECONDS_TO_CONNECT) as peer:
        if not peer.recv(1):
            raise ConnectionError("who listens there hung up")


def _why(future: Any) -> str:
    with contextlib.suppress(Exception):
        error = future.exception(timeout=1)
        if error is not None:
            return f"{type(error).__name__}: {str(error).splitlines()[0][:200]}"
    return f"it is {future.status}"


def _warn(line: str) -> None:
    warnings.warn(line, RuntimeWarning, stacklevel=2)
