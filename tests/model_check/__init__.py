"""The exhaustive search of the model of ownership."""
