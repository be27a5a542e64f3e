"""The counts of one generator process, or of several together. Does not know how they were counted."""

import dataclasses
from collections import Counter
from collections.abc import Iterable
from typing import Any

from loadtest.latencies import Latencies


@dataclasses.dataclass
class Tally:
    """Counts within the measured window, whose length is `seconds`.

    `latencies`: of messages answered in the window; in an open loop, of messages due in it. `errors`: of the
    whole run, by reason. `cpu_seconds`: what each generator process spent in the window. `num_sent_steps`:
    sent in the window, answered or not. `unsent_steps`: due in an open loop, and not sent by its end.
    """

    seconds: float = 0.0
    num_steps: int = 0
    num_messages: int = 0
    unsent_steps: int = 0
    errors: Counter[str] = dataclasses.field(default_factory=Counter)
    latencies: Latencies = dataclasses.field(default_factory=Latencies)
    cpu_seconds: list[float] = dataclasses.field(default_factory=list)
    num_sent_steps: int = 0

    @property
    def steps_per_second(self) -> float:
        """Steps answered in the window, per second of it."""
        return self.num_steps / self.seconds if self.seconds else 0.0

    @property
    def sent_steps_per_second(self) -> float:
        """Steps sent in the window, per second of it: the load that the server was really offered."""
        return self.num_sent_steps / self.seconds if self.seconds else 0.0

    @property
    def busiest_core(self) -> float:
        """The share of a core that the busiest generator process used."""
        return max(self.cpu_seconds, default=0.0) / self.seconds if self.seconds else 0.0

    @property
    def num_errors(self) -> int:
        """Messages that failed."""
        return self.errors.total()

    def to_json(self) -> dict[str, Any]:
        """Returns the counts as plain values, for another process."""
        fields = dataclasses.fields(self)
        return {field.name: getattr(self, field.name) for field in fields} | {
            "errors": dict(self.errors),
            "latencies": self.latencies.to_json(),
        }

    @classmethod
    def from_json(cls, fields: dict[str, Any]) -> "Tally":
        """Returns what `to_json` wrote."""
        latencies = Latencies.from_json(**fields["latencies"])
        return cls(**fields | {"errors": Counter(fields["errors"]), "latencies": latencies})


def add_up(tallies: Iterable[Tally]) -> Tally:
    """Returns the sum of tallies of one window. Its seconds are those of the longest."""
    total = Tally()
    for tally in tallies:
        total.seconds = max(total.seconds, tally.seconds)
        total.num_steps += tally.num_steps
        total.num_messages += tally.num_messages
        total.num_sent_steps += tally.num_sent_steps
        total.unsent_steps += tally.unsent_steps
        total.errors.update(tally.errors)
        total.latencies.add(tally.latencies)
        total.cpu_seconds += tally.cpu_seconds
    return total
