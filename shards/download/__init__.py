"""Fetching images by URL, politely."""
