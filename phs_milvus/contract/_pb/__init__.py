"""Generated from proto/phs/v1/encoder.proto by `make proto`. Only phs_milvus.wire reads or writes message fields."""
