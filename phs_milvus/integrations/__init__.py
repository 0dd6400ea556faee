"""Adapters for frameworks, one module each, which needs that framework: see the extras in pyproject.toml."""
