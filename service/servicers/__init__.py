"""What each method does: protos in, the engine's work, protos out. Knows no server technology."""
