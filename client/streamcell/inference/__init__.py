"""Generated messages and stubs of the Open Inference Protocol; nothing else in this package imports them."""
