"""How bytes come and go: one adapter per server technology, with no behaviour of the API in it."""
