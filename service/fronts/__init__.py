"""How bytes come and go: one adapter for each server technology. Does not know what the methods do."""
