"""What may be said about a run: its facts, the words that they bear out, and the page that shows them."""
