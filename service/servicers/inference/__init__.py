"""The methods of the Open Inference Protocol, with sequences as sessions. Does not know the other APIs."""
