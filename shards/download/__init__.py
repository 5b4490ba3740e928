"""Fetching pictures by URL, politely."""
