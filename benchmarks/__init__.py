"""How fast it is, against plain readers of the same bytes in the same run."""
