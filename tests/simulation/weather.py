"""How store and network fare now: what is slow, lost, or away. The scenario sets it, calls draw from it.

Does not know what calls are about.
"""

import dataclasses


@dataclasses.dataclass
class Weather:
    """The troubles of this moment; chances are for each call or message."""

    store_is_away: bool = False
    cut_from_store: set[str] = dataclasses.field(default_factory=set)  # names of processes
    store_slow_seconds: float = 0.0
    store_failure_chance: float = 0.0
    network_slow_seconds: float = 0.0
    network_failure_chance: float = 0.0
    changed_at: float = 0.0
    """When the weather last changed."""

    def clear(self):
        """Ends all trouble."""
        self.__init__(changed_at=self.changed_at)

    def reaches_store(self, name):
        """Returns whether a server's calls get to the store."""
        return not self.store_is_away and name not in self.cut_from_store

    def delay(self, random, most):
        """Returns how long half a call to the store takes; both halves end before the caller's patience."""
        return min(0.0005 + random.random() * (0.003 + self.store_slow_seconds), most / 2)

    def fate_of_call(self, random):
        """Returns what happens to a call to the store."""
        if random.random() >= self.store_failure_chance:
            return "well"
        return random.choice(("lost", "reply lost", "in part"))

    def fate_of_message(self, random):
        """Returns what happens to a call over the network."""
        if random.random() >= self.network_failure_chance:
            return "well"
        return random.choice(("lost", "reply lost"))

    def travel(self, random):
        """Returns how long a message is under way."""
        return 0.0002 + random.random() * (0.002 + self.network_slow_seconds)
