"""Reads lines of text from a file, a pipe or a terminal, each as soon as it is complete.

Reads in daemon threads, so that the program can end while a terminal waits for somebody to type. Knows
nothing of CSV.
"""

import asyncio
import codecs
import contextlib
import io
import os
import threading
from collections.abc import AsyncIterator

_CHUNK_BYTES = 1 << 16


async def read_lines(descriptor: int) -> AsyncIterator[str]:
    r"""Yields each line without its end as soon as the line is complete.

    The text is UTF-8, with or without a byte order mark; a line ends in \n, \r\n or \r.

    Raises:
        UnicodeDecodeError: the line after the last one yielded is not UTF-8.
        OSError: the descriptor cannot be read.
    """
    decoder = codecs.getincrementaldecoder("utf-8")()  # utf-8-sig drops a mark that is cut off
    newlines = io.IncrementalNewlineDecoder(None, translate=True)
    rest, failure, is_begun = "", None, False
    while failure is None and (chunk := await _read(descriptor)):
        try:
            text = decoder.decode(chunk)
        except UnicodeDecodeError as error:
            text, failure = error.object[: error.start].decode(), error
        if text and not is_begun:
            text, is_begun = text.removeprefix("\ufeff"), True
        *lines, rest = (rest + newlines.decode(text)).split("\n")
        for line in lines:
            yield line
    if failure is not None:
        raise failure
    rest += newlines.decode(decoder.decode(b"", final=True), final=True)
    if rest:
        yield rest.removesuffix("\n")


async def _read(descriptor: int) -> bytes:
    loop = asyncio.get_running_loop()
    future: asyncio.Future[bytes] = loop.create_future()

    def deliver(chunk: bytes, error: OSError | None) -> None:
        if future.done():
            return  # the reader was cancelled
        if error is not None:
            future.set_exception(error)
        else:
            future.set_result(chunk)

    def read() -> None:
        chunk, failure = b"", None
        try:
            chunk = os.read(descriptor, _CHUNK_BYTES)
        except OSError as error:
            failure = error
        with contextlib.suppress(RuntimeError):  # the event loop has ended meanwhile
            loop.call_soon_threadsafe(deliver, chunk, failure)

    threading.Thread(target=read, daemon=True, name="streamcell-read").start()
    return await future
