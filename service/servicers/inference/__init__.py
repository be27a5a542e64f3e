"""The methods of the Open Inference Protocol, its sequences as sessions. Does not know the other APIs."""
