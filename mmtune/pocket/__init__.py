"""The offline default: small checkpoints read by the same code as full-size ones. Holds no code."""
