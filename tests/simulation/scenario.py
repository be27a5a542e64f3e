"""Makes a plan's troubles: stops and starts servers, takes the store away, loses rows, breaks connections.

At the end everything is well again. Does not know clients, nor what is checked.
"""

import asyncio

from tests.simulation.server import Server

_COPY_SECONDS = 0.5  # between two copies of the database
_MAX_DOWN_SECONDS = 1.5


class Scenario:
    """The troubles of one seed."""

    def __init__(self, world):
        self._world = world
        self._copies = []
        self._num_started = 0
        self._num_runs = 0
        self._pending = set()
        self._is_calm = False

    async def run(self):
        """Makes the troubles, one after another, then ends all of them."""
        loop, plan = self._world.loop, self._world.plan
        for host in self._world.hosts:
            self._start(host)
        copying = loop.create_task(self._copy())
        for trouble in plan.troubles:
            await asyncio.sleep(max(0.0, trouble.begins - loop.time()))
            self._world.note("trouble", f"{trouble.kind}, {trouble.host}, {trouble.seconds:.2f} s")
            getattr(self, "_" + trouble.kind.replace(" ", "_"))(trouble)
        await asyncio.sleep(max(0.0, plan.seconds - loop.time()))
        copying.cancel()
        self._calm()

    def _calm(self):
        self._is_calm = True
        self._world.note("trouble", "ends")
        self._world.weather.clear()
        for server in self._world.servers:
            server.thaw()
        for host in self._world.hosts:
            self._start(host)

    def _start(self, host):
        """Starts a server at a host, unless one lives there."""
        if self._server_at(host.name) is not None:
            return
        self._num_started += 1
        server = Server(self._world, host, self._num_started)
        self._world.servers.append(server)
        server.start()

    def _later(self, seconds, function, *arguments):
        """Does something after a while, unless all is calm by then."""

        def do():
            if not self._is_calm:
                function(*arguments)

        self._world.loop.call_later(seconds, do)

    async def _copy(self):
        while True:
            self._copies.append(self._world.database.copy())
            await asyncio.sleep(_COPY_SECONDS)

    def _server_at(self, name):
        """Returns the server that lives at a host, listening or not; None if there is none."""
        alive = [each for each in self._world.servers if each.host.name == name and not each.is_dead]
        return alive[-1] if alive else None

    # -- Servers -------------------------------------------------------------------------------------

    def _crash(self, trouble):
        server = self._server_at(trouble.host)
        if server is not None:
            server.crash()
            self._later(min(trouble.seconds, _MAX_DOWN_SECONDS), self._start, server.host)

    def _crash_all(self, trouble):
        for host in self._world.hosts:
            self._crash(trouble._replace(host=host.name))

    def _freeze(self, trouble):
        """Stops a server for a while; another one may take its place meanwhile, as behind a load balancer."""
        server = self._server_at(trouble.host)
        if server is None or server.is_frozen:
            return
        server.freeze()
        self._later(trouble.seconds, self._thaw, server)
        self._world.loop.call_later(self._world.ping_seconds, self._give_up, server, server.frozen_at)

    def _thaw(self, server):
        if not server.is_dead:
            server.thaw()
            self._world.note(server.name, "goes on")

    def _give_up(self, server, frozen_at):
        """Breaks the connections to a server that has been silent for too long."""
        if server.is_frozen and server.frozen_at == frozen_at:
            for exchange in list(server.exchanges):
                exchange.break_off("ping timeout")

    def _drain(self, trouble):
        server = self._server_at(trouble.host)
        if server is not None and server.host.process is server:
            server.drain()
            self._world.loop.call_later(0.1, self._follow, server)

    def _follow(self, server):
        """Starts a successor once a server has drained."""
        if server.is_dead:
            self._start(server.host)
        else:
            self._world.loop.call_later(0.2, self._follow, server)

    # -- The store -----------------------------------------------------------------------------------

    def _for_a_while(self, seconds, **changes):
        """Changes the weather for a while."""
        weather = self._world.weather
        for name, value in changes.items():
            setattr(weather, name, value)
            self._later(seconds, setattr, weather, name, type(value)())

    def _store_away(self, trouble):
        self._for_a_while(trouble.seconds, store_is_away=True)

    def _store_cut(self, trouble):
        server = self._server_at(trouble.host)
        if server is not None:
            cut = self._world.weather.cut_from_store
            cut.add(server.name)
            self._later(trouble.seconds, cut.discard, server.name)

    def _store_slow(self, trouble):
        self._for_a_while(trouble.seconds, store_slow_seconds=0.02 + 0.6 * trouble.amount**2)

    def _store_fails(self, trouble):
        self._for_a_while(trouble.seconds, store_failure_chance=0.1 + 0.6 * trouble.amount)

    def _store_emptied(self, trouble):
        self._go_back(({}, {}))

    def _store_rolled_back(self, trouble):
        """Goes back to one of the copies; an administrator may do that without a restart."""
        if self._copies:
            number = int(trouble.amount * len(self._copies))
            self._go_back(self._copies[number], restarts=trouble.amount < 0.7)

    def _store_fails_over(self, trouble):
        """Goes on with a replica that lags a little, after some failures."""
        if self._copies:
            self._go_back(self._copies[-1])
            self._store_away(trouble._replace(seconds=min(trouble.seconds, 0.6)))

    def _row_evicted(self, trouble):
        database = self._world.database
        keys = sorted(database.rows)
        if keys:
            rows, ended = database.copy()
            del rows[keys[int(trouble.amount * len(keys))]]
            self._go_back((rows, ended), restarts=False)

    def _go_back(self, copy, *, restarts=True):
        self._world.oracle.lose(self._world.database.go_back(copy))
        if restarts:
            self._num_runs += 1
            self._world.database.run = f"run {self._num_runs}"

    # -- The rest ------------------------------------------------------------------------------------

    def _network_fails(self, trouble):
        self._for_a_while(trouble.seconds, network_failure_chance=0.05 + 0.4 * trouble.amount)

    def _network_slow(self, trouble):
        self._for_a_while(trouble.seconds, network_slow_seconds=0.5 * trouble.amount)

    def _clock_jumps(self, trouble):
        self._world.skew_seconds += (trouble.amount - 0.3) * 1e6
