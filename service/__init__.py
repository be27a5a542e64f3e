"""The Streamcell server: sessions of a recurrent network behind gRPC. See ARCHITECTURE.md for its layers."""
