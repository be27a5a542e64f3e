"""The standard services: health, reflection, channelz. Do not know the other APIs."""
