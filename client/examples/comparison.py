"""Compares a model's predictions with what came, and with persistence: the lines that the demo shows.

Knows nothing of servers and sessions.
"""

import datetime
import math

from model.datasets import Series


class Errors:
    """The errors of all predictions so far: mean absolute, and relative to the mean magnitude (altMAPE)."""

    def __init__(self) -> None:
        self._count = 0
        self._absolute = 0.0
        self._magnitude = 0.0

    def add(self, predicted: float, actual: float) -> None:
        """Counts one prediction."""
        self._count += 1
        self._absolute += abs(predicted - actual)
        self._magnitude += abs(actual)

    @property
    def mae(self) -> float:
        """Mean |e|."""
        return self._absolute / max(self._count, 1)

    @property
    def alt_mape(self) -> float:
        """Mean |e| / mean |y|; NaN for a series of zeros."""
        return self._absolute / self._magnitude if self._magnitude else math.nan


class Comparison:
    """One column of a series beside its predictions, and the errors of the model and of persistence.

    Persistence predicts that the next value is this one: a model that is worse has learnt nothing.
    """

    def __init__(self, series: Series, column: int) -> None:
        self._series = series
        self._actuals: list[float] = series.values[:, column].tolist()
        self._model = Errors()
        self._persistence = Errors()
        scale = sum(map(abs, self._actuals)) / len(self._actuals)
        # Five digits of the series' usual size, and no decimals for large values.
        self._decimals = min(max(4 - math.floor(math.log10(scale)), 0), 6) if scale > 0 else 4

    def add(self, row: int, predicted: float) -> None:
        """Counts the prediction that the row before had given for this row."""
        self._model.add(predicted, self._actuals[row])
        self._persistence.add(self._actuals[row - 1], self._actuals[row])

    def title(self) -> str:
        """Returns the names of the columns of `line`."""
        left = f"{'time':<19}{'actual':>12}{'predicted':>12}{'error':>12}"
        return f"{left}   |{'MAE so far':>12}{'persistence':>13}"

    def line(self, row: int, predicted: float | None) -> str:
        """Returns one row: the value that came, its prediction if there is one, and the errors so far."""
        actual = self._actuals[row]
        left = f"{self._when(int(self._series.times_ns[row])):<19}{self._number(actual):>12}"
        if predicted is None:
            return f"{left}{'-':>12}{'-':>12}   |{'-':>12}{'-':>13}"
        error = f"{actual - predicted:+,.{self._decimals}f}"
        errors = f"{self._number(self._model.mae):>12}{self._number(self._persistence.mae):>13}"
        return f"{left}{self._number(predicted):>12}{error:>12}   |{errors}"

    def forecast_line(self, ahead_ns: int, predicted: float) -> str:
        """Returns the value predicted for a time after the series' last row."""
        when = self._when(int(self._series.times_ns[-1]) + ahead_ns)
        return f"{when:<19}{'':>12}{self._number(predicted):>12}"

    def summary(self) -> list[str]:
        """Returns the errors over all rows, the model's beside those of persistence."""
        model, persistence = self._model, self._persistence
        lines = [
            f"{'':<14}{'model':>12}{'persistence':>14}   (persistence: the next value is this one)",
            f"{'MAE':<14}{self._number(model.mae):>12}{self._number(persistence.mae):>14}",
            f"{'altMAPE':<14}{model.alt_mape:>12.2%}{persistence.alt_mape:>14.2%}",
        ]
        if persistence.mae:
            change = model.mae / persistence.mae - 1
            which = "above" if change > 0 else "below"
            lines.append(f"the model's error is {abs(change):.1%} {which} persistence's")
        return lines

    def _number(self, value: float) -> str:
        return f"{value:,.{self._decimals}f}"

    def _when(self, time_ns: int) -> str:
        """Returns a date, or a count of seconds if the series has no dates."""
        if not self._series.calendar:
            return f"t = {time_ns / 1e9:,g} s"
        moment = datetime.datetime.fromtimestamp(time_ns // 10**9, datetime.UTC)
        return f"{moment:%Y-%m-%d %H:%M:%S}"
