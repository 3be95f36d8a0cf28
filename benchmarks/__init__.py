"""Speed, as ratios measured within one run against a reference that does what the published code does."""
