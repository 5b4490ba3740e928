"""What a recipe's network and its steps cost, and what devices could do at most."""
