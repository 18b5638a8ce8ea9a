"""Starting a stage in several processes of one node, and ending all of them together."""

from __future__ import annotations

import contextlib
import json
import math
import os
import signal
import subprocess
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import IO

from lti.errors import LTIError
from lti.interruption import Interrupted, asked_to_leave, saving_first, take_the_time
from lti.process_group import MEMBER

__all__ = ["run_together"]

_POLL_SECONDS = 0.05
_WORDS_SECONDS = 3.0  # for the first process to say what is wrong, where all find it
_LEAVE_SECONDS = 5.0  # for the others, once one has left
_SHOWN = 2000  # characters, of what a process that failed said last


@saving_first()
def run_together(command: Sequence[str], *, size: int, devices: Sequence[str] = ()) -> None:
    """Run a command in several processes that train together, and wait for all of them.

    They find their places through :func:`lti.process_group.member`. The first one's standard
    error is this process's; that of another is shown where it fails alone. SIGTERM and SIGUSR1 are
    passed on, and the processes save before they leave. They end when this process does.

    Args:
        command: the program and its arguments.
        size: how many processes.
        devices: the GPU of each; none: they compute on the processor.

    Raises:
        LTIError: a process failed; the others are ended.
        SystemExit: the first one failed, and has said why.
        Interrupted: they were asked to leave, and have.
    """
    with contextlib.ExitStack() as stack:
        folder = stack.enter_context(tempfile.TemporaryDirectory(prefix="lti-processes-"))
        processes: list[subprocess.Popen[bytes]] = []
        errors: list[IO[bytes] | None] = []
        stack.callback(_end, processes)
        for rank in range(size):
            place = {"rank": rank, "size": size, "store": f"{folder}/store"}
            environment = {**os.environ, MEMBER: json.dumps(place)}
            if devices:
                environment["CUDA_VISIBLE_DEVICES"] = devices[rank]
            # A file, not a pipe, which would have to be read to go on.
            error = stack.enter_context(Path(folder, str(rank)).open("w+b")) if rank else None
            errors.append(error)
            processes.append(
                subprocess.Popen(
                    command,
                    env=environment,
                    stdin=subprocess.PIPE,  # its end says that this process has ended
                    stderr=error,
                    start_new_session=True,  # signals reach them through this process, once
                )
            )
        _wait(processes, errors)


def _wait(processes: list[subprocess.Popen[bytes]], errors: list[IO[bytes] | None]) -> None:
    passed: signal.Signals | None = None
    deadline = math.inf
    while any(process.poll() is None for process in processes):
        if passed is None and (passed := asked_to_leave()) is not None:
            take_the_time()  # theirs is limited, each one's by itself
            for process in processes:
                process.send_signal(passed)
        codes = [process.poll() for process in processes]
        leaving = None if passed is None else 128 + passed
        if any(code not in (None, 0, leaving) for code in codes):
            break
        if passed is not None and leaving in codes:
            # The first has saved: they leave after that, all at once, or had nothing to save.
            deadline = min(deadline, time.monotonic() + _LEAVE_SECONDS)
            if time.monotonic() > deadline:
                raise Interrupted(passed)
        time.sleep(_POLL_SECONDS)
    codes = [process.poll() for process in processes]
    if passed is not None and any(codes) and all(code in (0, 128 + passed) for code in codes):
        raise Interrupted(passed)
    rank = next((rank for rank, code in enumerate(codes) if code), None)
    if rank is None:
        return
    with contextlib.suppress(subprocess.TimeoutExpired):
        if processes[0].wait(_WORDS_SECONDS if codes[rank] == 2 else 0) > 0:
            raise SystemExit(processes[0].returncode)
    raise LTIError(
        f"process {rank + 1} of {len(processes)} of this training {_manner(processes[rank])}; the "
        f"others were ended. Run the same command again; it goes on from what was saved."
        f"{_last_words(errors[rank])}"
    )


def _manner(process: subprocess.Popen[bytes]) -> str:
    if process.returncode < 0:
        return f"was killed by {signal.Signals(-process.returncode).name}"
    return f"failed with status {process.returncode}"


def _last_words(error: IO[bytes] | None) -> str:
    if error is None:
        return ""
    error.seek(0)
    words = error.read().decode(errors="replace").strip()[-_SHOWN:]
    return f" It said:\n{words}" if words else ""


def _end(processes: list[subprocess.Popen[bytes]]) -> None:
    for process in processes:
        process.kill()
        process.wait()
        if process.stdin is not None:
            process.stdin.close()
