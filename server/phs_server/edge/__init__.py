"""All that a caller can reach: the gRPC service, health, credentials and admission."""
