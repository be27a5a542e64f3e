"""Pipes a CSV series through a session: lines in, lines with predictions out, each as soon as it is known.

Owns the layout of the output. Knows nothing of how lines are read (`lines`) and parsed (`table`).
"""

import csv
import struct
from collections import deque
from collections.abc import AsyncIterator, Sequence
from typing import TextIO

from streamcell.client import Client
from streamcell.convert import TimedRow
from streamcell.errors import InvalidArgument, ModelNotFound, StreamcellError
from streamcell.session import Session
from streamcell.table import CsvError, SeriesReader, SeriesRow, time_after
from streamcell.values import Model


async def find_model(client: Client, session: Session) -> Model:
    """Returns the model that a session runs on."""
    for model in await client.models():
        if (model.name, model.version) == (session.model_name, session.model_version):
            return model
    raise ModelNotFound(f"the server no longer lists {session.model_name}/{session.model_version}")


class Pipe:
    """Sends the rows of one series to one session and writes its predictions.

    Args:
        known_until_ns: the time of the session's last step, Unix ns; rows up to that time are left out. None
            for a session without steps.

    Example:
        pipe = Pipe(session, model, file_name="taxi.csv", out=sys.stdout)
        await pipe.run(read_lines(descriptor), horizon_steps=48)
    """

    def __init__(
        self,
        session: Session,
        model: Model,
        *,
        file_name: str,
        out: TextIO,
        known_until_ns: int | None = None,
    ) -> None:
        self._session = session
        self._model = model
        self._file_name = file_name
        self._reader = SeriesReader(
            file_name, [variable.name for variable in model.inputs], uses_time=model.uses_time
        )
        self._out = out
        self._writer = csv.writer(out, lineterminator="\n")
        self._known_until_ns = known_until_ns
        self._unanswered: deque[SeriesRow] = deque()
        self._last_row: SeriesRow | None = None
        self._has_header = False
        self.num_skipped = 0
        """How many rows were left out, because the session has them."""

    async def run(self, lines: AsyncIterator[str], horizon_steps: int) -> None:
        """Writes a header, then a line for each row of the series and for each step of the forecast.

        Raises:
            CsvError: the series or a row cannot be used; the rows before it are written.
            StreamcellError: the server refused something other than a row.
        """
        predicted: Sequence[str] = [""] * len(self._model.outputs)
        try:
            async for reply in self._session.stream(self._rows(lines)):
                row = self._unanswered.popleft()
                self._write_header()
                self._last_row = row
                self._write(row.time_text, str(reply.step_index), row.texts, predicted)
                predicted = list(map(shortest, reply.y))
        except InvalidArgument as error:
            raise self._with_line(error) from error
        if self._last_row is None:
            raise CsvError(f"{self._file_name}: no rows")
        self._write_header()
        if horizon_steps:
            await self._forecast(horizon_steps, self._last_row)

    async def _rows(self, lines: AsyncIterator[str]) -> AsyncIterator[TimedRow | tuple[float, ...]]:
        try:
            async for line in lines:
                row = self._reader.feed(line)
                if row is not None and self._is_known(row):
                    self.num_skipped += 1
                    self._last_row = row
                elif row is not None:
                    self._unanswered.append(row)
                    yield row.values if row.time_ns is None else (row.time_ns, row.values)
        except UnicodeDecodeError:
            raise CsvError(f"{self._file_name}: line {self._reader.num_lines + 1}: not UTF-8 text") from None
        except OSError as error:
            raise CsvError(f"{self._file_name}: {error.strerror}") from None

    def _is_known(self, row: SeriesRow) -> bool:
        """Returns whether the session has a row already, by the row's time."""
        if self._known_until_ns is None or row.time_ns is None:
            return False
        return row.time_ns <= self._known_until_ns

    async def _forecast(self, horizon_steps: int, last: SeriesRow) -> None:
        interval = self._model.step_interval_seconds
        empty = [""] * len(self._model.inputs)
        first_index = self._session.next_step_index
        for ahead, y in enumerate(await self._session.forecast(horizon_steps)):
            time = time_after(last, interval * (ahead + 1)) if interval else ""
            self._write(time, str(first_index + ahead), empty, list(map(shortest, y)))

    def _write_header(self) -> None:
        if not self._has_header:
            self._has_header = True
            names = [variable.name for variable in self._model.inputs]
            self._write(
                "time", "step_index", names, [f"predicted_{each.name}" for each in self._model.outputs]
            )

    def _write(self, time: str, index: str, values: Sequence[str], predicted: Sequence[str]) -> None:
        self._writer.writerow([time, index, *values, *predicted])
        self._out.flush()  # a program that reads the pipe waits for this line

    def _with_line(self, error: StreamcellError) -> Exception:
        """Returns the error of the first unanswered row, with the line of that row."""
        if not self._unanswered:
            return error
        return CsvError(f"{self._file_name}: line {self._unanswered[0].line}: {error.message}")


def shortest(value: float) -> str:
    """Returns the shortest decimal text that float32 reads back as this value."""
    exact = (text for digits in range(6, 10) if _as_float32(text := f"{value:.{digits}g}") == value)
    return min(exact, key=len)


def _as_float32(text: str) -> float:
    number: float = struct.unpack("f", struct.pack("f", float(text)))[0]
    return number
