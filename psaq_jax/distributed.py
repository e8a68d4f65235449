"""Several processes, one program: how they start, what they tell each other, and how none waits for a dead one.

Every process runs the same program on its share: groups of images to synthesize, batches to calibrate on, images to
evaluate. They talk between the steps and never inside a compiled one. Process 0 alone has the real work folder; the
others write into one that is thrown away. With one process everything here returns what it was given.
"""

import contextlib
import io
import os
import re
import threading
import time
from collections.abc import Iterable, Iterator

import jax
import numpy as np
from jax.experimental import multihost_utils

from psaq_jax import peers
from psaq_jax.errors import InputError, TryAgain
from psaq_jax.progress import say

MODES = ("auto", "on", "off")
PIECE = 2**24  # bytes of a process that are exchanged at a time: what the devices hold for it stays small
PATIENCE = 300  # seconds in which all processes must have started
_connection: peers.Connection | None = None


def start(mode: str = "auto", address: str | None = None, number: int | None = None, own: int | None = None) -> None:
    """Joins the processes of this run; call it before anything else of JAX.

    Args:
      mode: "on": `jax.distributed` finds what is not given here (TPU VM, GKE, Slurm, Open MPI); "auto": "on" where
        an address is given or `in_cluster()`; "off": alone.
      address, number, own: HOST:PORT of process 0, how many processes, which is this one.
    Raises:
      InputError: no such cluster, half of the arguments, no HOST:PORT, or processes that cannot reach each other.
    """
    global _connection
    given = {"--coordinator_address": address, "--num_processes": number, "--process_id": own}
    if mode == "off" or (mode == "auto" and not in_cluster() and all(v is None for v in given.values())):
        if any(v is not None for v in given.values()):
            raise InputError("--distributed=off: found a process's address or number beside it; leave out one of both")
        return
    missing = [name for name, value in given.items() if value is None]
    if 0 < len(missing) < 3:
        raise InputError(f"{', '.join(missing)} missing; give all of {', '.join(given)}, or none in a cluster")
    host = None if address is None else _host(address)
    jax.config.update("jax_enable_preemption_service", False)  # it would swallow SIGTERM, which nobody asks it about
    too_late = threading.Timer(PATIENCE, _give_up)  # JAX would abort with a trace of its stack
    too_late.start()
    try:
        jax.distributed.initialize(address, number, own, own_devices(), initialization_timeout=PATIENCE + 60)
    except (ValueError, RuntimeError, OSError) as error:
        raise InputError(
            f"the processes cannot find each other ({error}); give {', '.join(given)}, or --distributed=off"
        ) from None
    finally:
        too_late.cancel()
    if count() > 1:
        with peers.Listener(host) if is_first() else contextlib.nullcontext() as listener:
            where = from_first(listener and {"where": np.asarray(listener.where)})["where"].item()
            _connection = peers.connect(where, index(), count(), listener)


def _host(address: str) -> str:
    """HOST of HOST:PORT, as sockets want it: an IPv6 address without its brackets."""
    found = re.fullmatch(r"(?:\[([^][\s]+)\]|([^][:\s]+)):([0-9]{1,5})", address)
    if not found or not 1 <= int(found[3]) <= 65535:
        expected = "HOST:PORT, or [HOST]:PORT where the host is an IPv6 address, with a port from 1 to 65535"
        raise InputError(f"--coordinator_address is {address!r}, expected {expected}")
    return found[1] or found[2]


def _give_up():
    say(f"error: not all processes of this run came within {PATIENCE} s; start the same command on every machine")
    os._exit(peers.LOST)


def in_cluster() -> bool:
    """Whether the environment says that this process is one of several: Slurm, Open MPI, JAX's own, TPU hosts."""
    counts = (os.environ.get(name, "") for name in ("SLURM_STEP_NUM_TASKS", "OMPI_COMM_WORLD_SIZE"))
    several = any(count.isdecimal() and int(count) > 1 for count in counts)
    workers = os.environ.get("TPU_WORKER_HOSTNAMES", "").split(",")
    return several or len(workers) > 1 or "JAX_COORDINATOR_ADDRESS" in os.environ


def own_devices() -> range | None:
    """All GPUs that Slurm or Open MPI gave a process which has its machine to itself: JAX would take one a process."""
    one_a_machine = os.environ.get("OMPI_COMM_WORLD_LOCAL_SIZE") == "1" or (
        os.environ.get("SLURM_STEP_NUM_TASKS", "") == os.environ.get("SLURM_STEP_NUM_NODES")
    )
    visible = os.environ.get("CUDA_VISIBLE_DEVICES", "")
    return range(len(visible.split(","))) if one_a_machine and visible else None


def finish() -> None:
    """Waits until every process is done, and parts from them."""
    global _connection
    if _connection:
        _connection.finish()
        _connection = None
        jax.distributed.shutdown()


def fail(code: int) -> None:
    """Ends this process at once, and tells the others with what code, so that they don't say to try again."""
    if _connection:
        _connection.fail(code)
    os._exit(code)


def is_started() -> bool:
    return jax.distributed.is_initialized()


def count() -> int:
    """How many processes there are."""
    return jax.process_count() if is_started() else 1


def index() -> int:
    """Which of them this is."""
    return jax.process_index() if is_started() else 0


def is_first() -> bool:
    return index() == 0


def share(things: list) -> list:
    """Every n-th, for this process; the first thing where there are too few for all."""
    return things[index() :: count()] or things[:1]


def own_part(things: int) -> range:
    """The consecutive numbers out of 0 to things − 1 that are this process's; all, where there are too few."""
    if things < count():
        return range(things)
    return range(things * index() // count(), things * (index() + 1) // count())


def gather(rows: np.ndarray) -> np.ndarray:
    """[n_i, ...] in process i -> their concatenation in every process, exactly, whatever the type."""
    if count() == 1:
        return np.asarray(rows)
    rows = np.ascontiguousarray(rows)
    content = rows.reshape(-1).view(np.uint8)
    sizes = _all_gather(np.asarray([content.size], np.int64).view(np.uint8)).view(np.int64).reshape(-1)
    padded = np.pad(content, (0, int(sizes.max()) - content.size))
    pieces = [_all_gather(padded[i : i + PIECE]) for i in range(0, padded.size, PIECE)]
    whole = np.concatenate(pieces, axis=1) if pieces else np.zeros((count(), 0), np.uint8)
    joined = np.concatenate([part[:size] for part, size in zip(whole, sizes, strict=True)])
    return joined.view(rows.dtype).reshape(-1, *rows.shape[1:])


def from_first(arrays: dict[str, np.ndarray] | None) -> dict[str, np.ndarray] | None:
    """What process 0 gives, in every process."""
    if count() == 1:
        return arrays
    buffer = io.BytesIO()
    if arrays is not None and is_first():
        np.savez(buffer, **arrays)
    content = np.frombuffer(buffer.getvalue(), np.uint8)
    size = int(_broadcast(np.asarray([content.size], np.int64).view(np.uint8)).view(np.int64)[0])
    if not is_first():
        content = np.zeros(size, np.uint8)
    whole = b"".join(_broadcast(content[i : i + PIECE]).tobytes() for i in range(0, size, PIECE))
    return dict(np.load(io.BytesIO(whole), allow_pickle=False)) if size else None


def each_from_first(items: Iterable[dict[str, np.ndarray]]) -> Iterator[dict[str, np.ndarray]]:
    """The items of process 0 in every process, one after another."""
    items = iter(items)
    while (item := from_first(next(items, None) if is_first() else None)) is not None:
        yield item


def any_of(*flags: bool) -> tuple[bool, ...]:
    """For each flag, whether any process has it."""
    return tuple(gather(np.asarray([flags], bool)).any(axis=0).tolist())


def gather_texts(texts: list[str]) -> list[str]:
    """The texts of all processes, in their order; none holds a zero byte."""
    content = "".join(f"{text}\0" for text in texts).encode(errors="surrogatepass")  # names are any bytes
    return gather(np.frombuffer(content, np.uint8)).tobytes().decode(errors="surrogatepass").split("\0")[:-1]


def check_same(what: str, text: str) -> None:
    """Raises InputError where the processes were started for different things."""
    if len(set(gather_texts([text]))) > 1:
        raise InputError(f"{what} differs between the processes; start all of them with the same command and files")


def _all_gather(content: np.ndarray) -> np.ndarray:
    return np.asarray(_together(multihost_utils.process_allgather, content))


def _broadcast(content: np.ndarray) -> np.ndarray:
    return np.asarray(_together(multihost_utils.broadcast_one_to_all, content)).astype(np.uint8)


def _together(exchange, content):
    try:
        return exchange(content)
    except jax.errors.JaxRuntimeError as error:
        if _connection:
            time.sleep(peers.SILENCE)  # the connection notices who is lost, says so and ends this process
        found = f"the processes cannot exchange results ({str(error).splitlines()[0]})"
        raise TryAgain(f"{found}; start the same command again") from None
