"""Cross-view language modelling: one model for images with captions and sentences with translations."""

__version__ = "0.1.0"
