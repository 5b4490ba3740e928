"""The model: pure torch and transformers base classes; an exported checkpoint carries these files."""
