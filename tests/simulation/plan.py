"""What a seed draws before anything runs: the settings, the servers, the clients, and the troubles in order.

Does not know how troubles are made.
"""

import dataclasses
from typing import NamedTuple

KINDS = {
    "crash": 6,
    "freeze": 8,
    "drain": 4,
    "crash all": 1,
    "store away": 3,
    "store cut": 4,
    "store slow": 3,
    "store fails": 4,
    "store emptied": 2,
    "store rolled back": 2,
    "store fails over": 3,
    "row evicted": 9,
    "network fails": 3,
    "network slow": 2,
    "clock jumps": 1,
}
"""The troubles, and how often each comes."""

LOSSES = ("store emptied", "store rolled back", "store fails over", "row evicted")
"""The troubles that take rows from the store."""


class Trouble(NamedTuple):
    """One trouble: when it begins, how long it lasts, and which server it meets, if any."""

    begins: float
    kind: str
    seconds: float
    host: str
    amount: float  # between 0 and 1: how much


@dataclasses.dataclass
class Plan:
    """What one seed does."""

    settings: dict
    hosts: list[str]
    clients: list[tuple[str, str]]  # kind and session id
    troubles: list[Trouble]
    seconds: float

    @property
    def loses_rows(self):
        """Whether the store loses rows, or goes back to older ones."""
        return any(trouble.kind in LOSSES for trouble in self.troubles)


def draw(random):
    """Returns a plan."""
    hosts = ["a", "b", "c"][: random.choice((2, 2, 3))]
    seconds = random.uniform(4.0, 9.0)
    settings = {
        "checkpoint_interval_seconds": random.choice((0.3, 0.6, 1.0)),
        "max_resident_sessions": random.choice((2, 3, 8, 32, 32)),
        "replies_kept": random.choice((2, 4, 8)),
        "session_ttl_seconds": 0.0,
        "max_stream_sessions": 64,
    }
    clients = _clients(random)
    if "frames" in dict(clients):  # a frame's sessions have to fit into memory
        settings["max_resident_sessions"] = max(settings["max_resident_sessions"], 5)
    return Plan(settings, hosts, clients, _troubles(random, hosts, seconds), seconds)


def _clients(random):
    """Returns 3 to 6 clients; `d` in front of an id is for durable sessions, `c` for constant ones."""
    kinds = ["library"] * random.randint(1, 3) + ["plain"] * random.randint(0, 2)
    kinds += ["indexed"] * random.randint(0, 2) + ["frames"] * (random.random() < 0.35)
    clients = []
    for number, kind in enumerate(kinds):
        is_durable = random.random() < (0.4 if kind != "frames" else 0.3)
        clients.append((kind, f"{'d' if is_durable else 's'}{kind}{number}"))
    if random.random() < 0.4:
        clients += [("shared", "shared"), ("shared", "shared")]
    return clients


def _troubles(random, hosts, seconds):
    troubles = []
    kinds, weights = list(KINDS), list(KINDS.values())
    if random.random() < 0.6:  # most promises count only where the store loses nothing
        weights = [0 if kind in LOSSES else weight for kind, weight in KINDS.items()]
    now = random.uniform(0.2, 1.0)
    while now < seconds - 0.5:
        kind = random.choices(kinds, weights)[0]
        lasts = random.choice((0.1, 0.4, 1.0, 2.0, 4.0)) * random.uniform(0.5, 1.0)
        troubles.append(Trouble(now, kind, lasts, random.choice(hosts), random.random()))
        # Some come together.
        now += random.choice((0.0, 0.05, 0.3, 0.8, 1.5, 2.5)) * random.random()
    return troubles
