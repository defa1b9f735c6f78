"""Runs: their directories on disk, what is recorded of their surroundings, and how one is carried out."""
