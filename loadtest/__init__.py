"""A load generator for a Streamcell server: how many steps it takes, how long each one takes, and what it costs."""
