"""The decode engine, sampling and (later) remote endpoints."""
