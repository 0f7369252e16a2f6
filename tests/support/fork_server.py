"""Runs command lines in processes that take a second and not ten: forks of one that has imported everything.

As a module of tests it is the client, as a script the server. A child can be told to kill itself at a chosen moment:
before its n-th operation on the files of a folder, in the middle of its n-th training state, or at its n-th picture.
"""

import atexit
import itertools
import json
import os
import runpy
import signal
import socket
import subprocess
import sys
import time
import traceback
from collections.abc import Sequence
from pathlib import Path
from typing import Any

_WRITING = {"os.rename", "os.remove", "os.mkdir", "os.rmdir", "os.truncate", "os.chmod"}


class Child:
    """A forked command line and its process."""

    def __init__(self, server: "ForkServer", pid: int, output: Path):
        self.server, self.pid, self.output = server, pid, output

    def wait(self) -> int:
        """The exit code, negative for a signal."""
        return self.server.ask({"wait": self.pid})

    def is_running(self) -> bool:
        return self.server.ask({"poll": self.pid}) is None

    @property
    def text(self) -> str:
        """What it has written to stdout and stderr."""
        return self.output.read_text(encoding="utf-8", errors="replace")


class ForkServer:
    """The process that forks; one for a test session."""

    def __init__(self, folder: Path):
        self.folder, self.count = folder, 0
        pipes: dict[str, Any] = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "text": True, "bufsize": 1}
        # One thread each: several run at once, and sums must not depend on how many cores there are.
        one_thread = {**os.environ, "OMP_NUM_THREADS": "1"}
        self.process = subprocess.Popen([sys.executable, __file__], env=one_thread, **pipes)

    def ask(self, request: dict[str, Any]) -> Any:
        print(json.dumps(request), file=self.process.stdin, flush=True)
        return json.loads(self.process.stdout.readline())

    def start(self, command: str, argv: Sequence[str], **options: Any) -> Child:
        """Starts `train`, `evaluate`, `study` or the `script` that `argv` names; `options` are those of `_run`."""
        self.count += 1
        output = self.folder / f"{self.count}.txt"
        request = {"command": command, "argv": [str(item) for item in argv], "output": str(output), **options}
        return Child(self, self.ask({"start": request}), output)

    def start_ranks(self, world_size: int, argv: Sequence[str], command: str = "train") -> list[Child]:
        """Starts a command in several processes that know each other, as a launcher does."""
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            port = free.getsockname()[1]
        common = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)}
        common |= dict.fromkeys(("WORLD_SIZE", "LOCAL_WORLD_SIZE"), str(world_size))
        ranks = [dict.fromkeys(("RANK", "LOCAL_RANK"), str(rank)) for rank in range(world_size)]
        return [self.start(command, argv, environment=common | rank) for rank in ranks]

    def run(self, command: str, argv: Sequence[str], **options: Any) -> Child:
        """Starts a command line and waits for its end."""
        child = self.start(command, argv, **options)
        child.wait()
        return child

    def close(self) -> None:
        self.process.stdin.close()
        self.process.wait(timeout=30)


def _kill_at_file_operation(folder: str, number: int | None, counter: str | None) -> None:
    """Kills this process before its n-th operation that changes the folder's files; without a number it counts."""
    count = 0

    def note(event: str, arguments: tuple[Any, ...]) -> None:
        nonlocal count
        changes = event in _WRITING or (event == "open" and (arguments[2] or 0) & (os.O_WRONLY | os.O_RDWR))
        if changes and isinstance(arguments[0], (str, os.PathLike)) and Path(arguments[0]).is_relative_to(folder):
            count += 1
            if counter is not None:
                Path(counter).write_text(str(count))
            if count == number:
                os.kill(os.getpid(), signal.SIGKILL)

    sys.addaudithook(note)


def _kill_at_call(module: Any, name: str, number: int, *, halves: bool = False) -> None:
    """Kills this process in the n-th call of a function, when half of the file is written that it writes."""
    call, calls = getattr(module, name), itertools.count(1)

    def counted(*arguments: Any, **options: Any) -> Any:
        result = call(*arguments, **options)
        if next(calls) == number:
            if halves:
                os.truncate(arguments[1], Path(arguments[1]).stat().st_size // 2)
            os.kill(os.getpid(), signal.SIGKILL)
        time.sleep(0.002)  # so that pictures reach the file before the last one is decoded
        return result

    setattr(module, name, counted)


def _run(
    command: str,
    argv: list[str],
    output: str,
    environment: dict[str, str] | None = None,
    watched: str = "",
    file_operation: int | None = None,
    counter: str | None = None,
    state: int | None = None,
    picture: int | None = None,
) -> int:
    """The child: its output into a file, its end prepared, then the command line."""
    file = os.open(output, os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
    os.dup2(os.open(os.devnull, os.O_RDONLY), 0)
    os.dup2(file, 1)
    os.dup2(file, 2)
    os.environ.update(environment or {})
    if watched:
        _kill_at_file_operation(watched, file_operation, counter)
    if command == "script":
        runpy.run_path(argv[0], run_name="__main__")
        return 0
    from ham10000.training import run_folder, train
    from ham10000.training.data import loader
    from ham10000.training.evaluation import __main__ as evaluation
    from ham10000.training.study import __main__ as study

    if state is not None:
        _kill_at_call(run_folder, "save_file", state, halves=True)
    if picture is not None:
        _kill_at_call(loader, "decode", picture)
    return {"train": train, "evaluate": evaluation, "study": study}[command].main(argv)


def _serve() -> None:
    import ham10000.training.study.command  # noqa: F401  (what takes seconds, once)

    codes: dict[int, int] = {}
    for line in sys.stdin:
        ((question, value),) = json.loads(line).items()
        if question == "start":
            answer: int | None = os.fork()
            if answer == 0:
                code = 1
                try:
                    code = _run(**value)
                except BaseException:
                    traceback.print_exc()
                finally:
                    atexit._run_exitfuncs()  # as an interpreter does, which waits for its workers here
                    sys.stdout.flush()
                    sys.stderr.flush()
                    os._exit(code)
        else:
            if value not in codes:
                done, status = os.waitpid(value, 0 if question == "wait" else os.WNOHANG)
                if done:
                    codes[done] = os.waitstatus_to_exitcode(status)
            answer = codes.get(value)
        print(json.dumps(answer), flush=True)


if __name__ == "__main__":
    _serve()
