"""Which samples come when, and who fetches them."""
