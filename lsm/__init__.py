"""lsm: language models that work on sentence vectors instead of tokens."""

__version__ = "0.1.0"
