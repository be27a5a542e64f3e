"""Models, their versions and session ids, server-wide. Does not know protos, nor how sessions are stored."""
