"""The protocols' values and shapes, free of any server: JSON ↔ tensors, V1 payloads, the SDK's own types."""
