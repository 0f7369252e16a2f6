"""Finds the command lines of a Markdown document and parses them as the command would, without running it."""

import argparse
import importlib
import re
import runpy
import shlex
import sys
import tomllib
from collections.abc import Callable, Iterator
from pathlib import Path
from unittest import mock

from accelerate.commands.launch import launch_command_parser
from markdown_it import MarkdownIt

from ham10000.training.config import parse_arguments
from ham10000.training.study.__main__ import parse_study

ROOT = Path(__file__).parents[2]
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
TARGETS = re.findall(r"^([a-z-]+):", (ROOT / "Makefile").read_text(encoding="utf-8"), re.MULTILINE)
# These two check values as well as names before they do anything.
_VALIDATE: dict[str, Callable[[list[str]], object]] = {
    "ham10000.training.train": parse_arguments,
    "ham10000.training.__main__": parse_arguments,
    "ham10000.training.study.__main__": parse_study,
}
_COMMAND = re.compile(r"(ham10000-|(make|accelerate|python|\.venv/bin/python|pip) )")


class _Parsed(BaseException):
    """Raised where a command would begin to work; no command catches it."""


def code_blocks(markdown: str, language: str) -> list[str]:
    """The fenced blocks of a language; of "" the indented ones."""
    tokens = MarkdownIt("commonmark").parse(markdown)
    kind = "fence" if language else "code_block"
    return [token.content for token in tokens if token.type == kind and token.info == language]


def command_lines(markdown: str) -> Iterator[tuple[str, bool]]:
    """Each command line once, and whether it is complete: within a sentence what is required may be left out."""
    for block in [*code_blocks(markdown, ""), *code_blocks(markdown, "sh"), *code_blocks(markdown, "bash")]:
        for line in block.replace("\\\n", " ").splitlines():
            if _COMMAND.match(line):
                yield line, True
    for token in MarkdownIt("commonmark").enable("table").parse(markdown):
        for child in token.children or []:
            if child.type == "code_inline" and _COMMAND.match(child.content):
                yield child.content, False


def parse_command(line: str, complete: bool = True) -> None:
    """Parses a line of a shell with the command's own parser; a complete one has every required argument.

    A ValueError is what the parser said, or that there is no such command, target, extra, script or test. The options
    of pytest are left to pytest.
    """
    match [word for word in shlex.split(line, comments=True) if word != "…"]:
        case ["make", *targets]:
            if missing := [target for target in targets if target not in TARGETS]:
                raise ValueError(f"the Makefile has no target {missing[0]!r}")
        case ["pip", "install", *words]:
            extras = [extra for word in words for part in re.findall(r"\[(.*)\]", word) for extra in part.split(",")]
            if missing := [extra for extra in extras if extra not in PROJECT["optional-dependencies"]]:
                raise ValueError(f"pyproject.toml has no extra {missing[0]!r}")
        case ["accelerate", "launch", *words]:
            launched = _parse(lambda: launch_command_parser().parse_args(words), complete)
            if launched is not None and launched.training_script:
                parse = _parse_module if launched.module else _parse_script
                parse(launched.training_script, words=launched.training_script_args, complete=complete)
        case ["python" | ".venv/bin/python", "-m", "pytest", *words]:
            _find_tests(words)
        case ["python" | ".venv/bin/python", "-m", module, *words]:
            _parse_module(module, words=words, complete=complete)
        case ["python", "-c", code]:
            compile(code, "-c", "exec")
        case ["python" | ".venv/bin/python", script, *words]:
            _parse_script(script, words, complete)
        case [command, *words] if command in PROJECT["scripts"]:
            _parse_module(*PROJECT["scripts"][command].split(":"), words=words, complete=complete)
        case _:
            raise ValueError("no such command")


def _parse_module(name: str, function: str = "main", *, words: list[str], complete: bool) -> None:
    module = importlib.import_module(name)
    if hasattr(module, "__path__"):  # `python -m` runs the `__main__` of a package
        module = importlib.import_module(f"{name}.__main__")
    main = getattr(module, function)
    if complete and main.__module__ in _VALIDATE:
        _parse(lambda: _VALIDATE[main.__module__](words), complete, stop=False)
    else:
        _parse(lambda: main(words), complete)


def _parse_script(script: str, words: list[str], complete: bool) -> None:
    path = ROOT / script
    if not path.is_file():
        raise ValueError(f"there is no {script}")
    if path.parent.name in ("training", "modeling", "hub_upload"):
        _parse_module(f"ham10000.{path.parent.name}.{path.stem}", words=words, complete=complete)
    elif "ArgumentParser" in path.read_text(encoding="utf-8"):
        with mock.patch.object(sys, "argv", [script, *words]):
            _parse(lambda: runpy.run_path(str(path), run_name="__main__"), complete)
    elif any(word.startswith("-") for word in words):
        raise ValueError(f"{script} has no options")


def _find_tests(words: list[str]) -> None:
    """Each path exists, and each name after `::` is a function in it."""
    for word in words:
        file, _, name = word.partition("::")
        if file.endswith(".py") and not (ROOT / file).is_file():
            raise ValueError(f"there is no {file}")
        if name and f"\ndef {name}(" not in (ROOT / file).read_text(encoding="utf-8"):
            raise ValueError(f"{file} has no {name}")


def _parse(call: Callable[[], object], complete: bool, stop: bool = True) -> argparse.Namespace | None:
    """Calls; with `stop`, only up to the moment at which all arguments are parsed."""
    parse_args = argparse.ArgumentParser.parse_args

    def parse_and_stop(parser: argparse.ArgumentParser, args: object = None, namespace: object = None) -> object:
        if not complete:
            for required in [*parser._actions, *parser._mutually_exclusive_groups]:
                required.required = False
        parsed = parse_args(parser, args, namespace)  # type: ignore[call-overload]
        if stop:
            raise _Parsed(parsed)
        return parsed

    def fail(parser: argparse.ArgumentParser, message: str) -> None:
        if not complete and (message.endswith("expected one argument") or "arguments are required" in message):
            raise _Parsed(None)  # a sentence may name an option without its value, or a command without its options
        raise ValueError(message)

    with mock.patch.multiple(argparse.ArgumentParser, parse_args=parse_and_stop, error=fail):
        try:
            call()
        except _Parsed as parsed:
            return parsed.args[0]
        except SystemExit as done:  # of --help and --version
            if done.code:
                raise
            return None
    if stop:
        raise ValueError("it parses no arguments")
    return None
