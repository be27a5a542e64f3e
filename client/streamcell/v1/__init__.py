"""Generated messages and stubs of the Streamcell API, version 1."""
