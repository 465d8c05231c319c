"""What models cost, what runs have written, the config's reference; and the published tables."""
