"""Servers, their store and the client library in one process, under virtual time and a seed's faults.

    python -m tests.simulation --seeds 10000
    python -m tests.simulation --seed 17 --trace

Everything that is checked is the production code: engines, persistence, servicers, router, and the whole
client library. What stands in for the rest is here: `loop` for time, `database` for SQLite and Redis,
`network` for gRPC, `model` for the artifact. `plan` draws a seed's troubles and `scenario` makes them,
`programs` and `raw` are the clients, `oracle` knows what is true, `planted` breaks the code on purpose.
"""
