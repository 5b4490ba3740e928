"""Boxes of images with texts about them (CCLM-4M, CCLM-X2VLM)."""
