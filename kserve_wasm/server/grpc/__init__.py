"""The V2 inference protocol over gRPC, with health checking and reflection."""
