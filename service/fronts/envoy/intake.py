"""What the messages of all calls share on their way in. Does not know how a call reads."""

from service.fronts.envoy.arrivals import Arrivals
from service.rpc.inflation import Inflation


class Intake:
    """The bounds on messages that arrive, and on messages that are inflated."""

    def __init__(self, arrivals: Arrivals, inflation: Inflation) -> None:
        self.arrivals = arrivals
        self.inflation = inflation
