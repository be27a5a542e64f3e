"""What each method does: a package for each API, and two modules that the APIs share.

No API knows another, and none knows how bytes come over the network.
"""
