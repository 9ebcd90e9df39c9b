"""The parts that commands share: output, messages on standard error, errors about parameters, and the end on Ctrl-C."""

from __future__ import annotations

import os
import signal
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from types import FrameType
from typing import TextIO

import click

STATUS_S = 0.5
"""Seconds between two updates of the status line."""

_CLEAR_LINE = "\r\x1b[K"

AGAIN_S = 0.2
"""After a signal, `KeyboardInterrupt` is raised at this interval until the block ends."""


def print_out(text: str, *, colour: bool | None = None, unwritten: int = 1) -> None:
    """Write a line to standard output. If that fails, end as `output` says."""
    with output(unwritten):
        click.echo(text, color=colour)


@contextmanager
def output(unwritten: int = 1) -> Iterator[None]:
    """End the command with the exit code `unwritten` if the block can't write to standard output. A line on standard error says why.

    If a pipe was closed, there is no such line, because its reader needs no more.
    """
    try:
        yield
    except OSError as error:
        if not isinstance(error, BrokenPipeError):
            complain(f"can't write: {error.strerror or error}")
        drop_output()
        sys.exit(unwritten)


def complain(text: str) -> None:
    """Write an error to standard error. If that can't be written, do nothing, because the exit code reports the error, too."""
    StatusLine(sys.stderr).say(f"towerws: {text}")


def drop_output() -> None:
    """Drop the unwritten bytes of standard output. Otherwise the interpreter reports an error when it flushes them at its end."""
    with suppress(OSError, ValueError):  # ValueError: standard output is no file
        null = os.open(os.devnull, os.O_WRONLY)
        os.dup2(null, sys.stdout.fileno())
        os.close(null)


@contextmanager
def bad_parameter(name: str) -> Iterator[None]:
    """Turn a `ValueError` of the block into click's error about the parameter of this name: one line, and exit code 2."""
    try:
        yield
    except ValueError as error:
        raise click.BadParameter(str(error), param_hint=name) from None


@contextmanager
def interrupted_by(*signals: signal.Signals) -> Iterator[None]:
    """Raise `KeyboardInterrupt` in the block when one of these signals comes, and again every `AGAIN_S` until the block ends.

    Once is not enough: Python drops an exception that is raised in the finalizer of an object. In `towerws demo` on a busy connection, 2 of
    100 Ctrl-C came while the last answer's object was freed, and had no effect. A signal that the process ignores stays ignored. Use this
    in the main thread only.
    """

    def interrupt(number: int, frame: FrameType | None) -> None:
        signal.setitimer(signal.ITIMER_REAL, AGAIN_S)
        raise KeyboardInterrupt

    heeded = [each for each in signals if signal.getsignal(each) is not signal.SIG_IGN]
    before = {each: signal.signal(each, interrupt) for each in (*heeded, signal.SIGALRM)}
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        for each, handler in before.items():
            signal.signal(each, handler)


class Command(click.Command):
    """A command that ends as `output` says if its help can't be written."""

    def parse_args(self, ctx: click.Context, args: list[str]) -> list[str]:
        """Parse the arguments. The option `--help` prints the help in this call."""
        with output():
            return super().parse_args(ctx, args)


class StatusLine:
    """Writes notices, with a status line below them on a terminal. A pipe or a log gets the notices only."""

    def __init__(self, stream: TextIO | None) -> None:
        """Write to `stream`. None, as with `2>&-`: write nothing."""
        self._stream = stream
        self._live = stream is not None and stream.isatty()
        self._next_s = 0.0
        self._shown = False

    def say(self, text: str) -> None:
        """Write a notice: a line that stays."""
        self.clear()
        self._write(f"{text}\n")

    def show(self, text: str) -> None:
        """Replace the status line, if its last update is at least `STATUS_S` old. Does nothing if the stream is no terminal."""
        if self._live and time.monotonic() >= self._next_s:
            self._next_s = time.monotonic() + STATUS_S
            self._shown = True
            self._write(_CLEAR_LINE + text)

    def clear(self) -> None:
        """Remove the status line."""
        if self._shown:
            self._shown = False
            self._next_s = 0.0
            self._write(_CLEAR_LINE)

    def _write(self, text: str) -> None:
        if self._stream is None:
            return
        try:
            self._stream.write(text)
            self._stream.flush()
        except OSError:
            return  # the reader has closed the pipe, or the disk is full. The command goes on without notices
