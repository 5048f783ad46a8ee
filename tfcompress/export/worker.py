"""The parent's end of the converter process: start, ask, time out, restart after a crash, end at exit."""

import atexit
import functools
import json
import os
import pathlib
import queue
import signal
import subprocess
import sys
import tempfile
import threading

import tfcompress
from tfcompress.errors import CompressionError

_TAIL_LINES = 12


class WorkerError(CompressionError):
    """The converter refused, crashed or ran out of time; the message holds the tail of its log."""


class WorkerCrash(WorkerError):
    """The converter's process died (a segmentation fault, out of memory, ...)."""


class WorkerTimeout(WorkerError):
    """The converter did not answer in time and was ended."""


class Worker:
    """A child process with TensorFlow's converter, started at the first request and kept.

    Args:
        timeout: seconds that one request may take.
    """

    def __init__(self, timeout: float = 600.0):
        self.timeout = timeout
        self.starts = 0
        self._process: subprocess.Popen | None = None
        self._answers: queue.Queue = queue.Queue()
        self._log: pathlib.Path | None = None
        self._read_from = 0
        self._lock = threading.Lock()

    @property
    def pid(self) -> int | None:
        """The child's process id while it runs."""
        return self._process.pid if self._process is not None and self._process.poll() is None else None

    def request(self, do: str, timeout: float | None = None, **arguments) -> dict:
        """Let the child do one of `_worker.COMMANDS`.

        Raises:
            WorkerError: the command failed. WorkerCrash: the process died. WorkerTimeout: it took too long.
        """
        limit = self.timeout if timeout is None else timeout
        with self._lock:
            self._start()
            assert self._process is not None
            assert self._process.stdin is not None
            assert self._log is not None
            self._read_from = self._log.stat().st_size
            try:
                self._process.stdin.write(json.dumps({"do": do, "with": arguments}) + "\n")
                self._process.stdin.flush()
                answer = self._answers.get(timeout=limit)
            except queue.Empty:
                self._end()
                raise WorkerTimeout(
                    f"The TFLite converter did not finish {do!r} in {limit:g} s and was ended. "
                    f"Pass a larger timeout. {self.tail()}"
                ) from None
            except OSError:
                answer = None
            except BaseException:  # an interrupted wait would leave an answer that belongs to nobody
                self._end()
                raise
            if answer is None:
                code = self._process.wait()
                self._end()
                raise WorkerCrash(f"The TFLite converter's process died during {do!r} ({_cause(code)}). {self.tail()}")
        if not answer.pop("ok"):
            raise WorkerError(answer["error"])
        return answer

    def tail(self) -> str:
        """The last lines that the child wrote during the last request."""
        if self._log is None or not self._log.exists():
            return ""
        with open(self._log, "rb") as log:
            log.seek(self._read_from)
            lines = [line for line in log.read().decode("utf-8", "replace").splitlines() if line.strip()]
        return "The end of its log:\n  " + "\n  ".join(lines[-_TAIL_LINES:]) if lines else "Its log is empty."

    def close(self) -> None:
        """End the child and remove its log."""
        with self._lock:
            self._end()
            if self._log is not None:
                self._log.unlink(missing_ok=True)
                self._log = None

    def _start(self) -> None:
        if self.pid is not None:
            return
        if self._log is None:
            handle, name = tempfile.mkstemp(prefix="tfcompress-converter-", suffix=".log")
            os.close(handle)
            self._log = pathlib.Path(name)
            atexit.register(self.close)
        environment = {**os.environ, "KERAS_BACKEND": "tensorflow", "CUDA_VISIBLE_DEVICES": ""}
        environment.setdefault("TF_CPP_MIN_LOG_LEVEL", "1")
        root = str(pathlib.Path(tfcompress.__file__).parents[1])
        environment["PYTHONPATH"] = os.pathsep.join(filter(None, [root, os.environ.get("PYTHONPATH")]))
        with open(self._log, "ab") as log:
            self._process = subprocess.Popen(
                [sys.executable, "-W", "ignore", "-m", "tfcompress.export._worker"],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=log,
                text=True,
                env=environment,
            )
        self.starts += 1
        self._answers = queue.Queue()
        threading.Thread(target=_read, args=(self._process.stdout, self._answers), daemon=True).start()

    def _end(self) -> None:
        process, self._process = self._process, None
        if process is None:
            return
        process.kill()
        process.wait()
        for pipe in (process.stdin, process.stdout):
            if pipe is not None:
                try:
                    pipe.close()
                except OSError:  # what was not flushed has no reader any more
                    continue


@functools.cache
def shared() -> Worker:
    """The session's one worker."""
    return Worker()


def _read(pipe, answers: queue.Queue) -> None:
    """Put every answer into the queue, and None when the child is gone."""
    try:
        for line in pipe:
            answers.put(json.loads(line))
    except ValueError:  # the pipe was closed while it was read, or the child died in the middle of a line
        pass
    answers.put(None)


def _cause(code: int) -> str:
    if code >= 0:
        return f"exit status {code}"
    try:
        return signal.Signals(-code).name
    except ValueError:
        return f"signal {-code}"
