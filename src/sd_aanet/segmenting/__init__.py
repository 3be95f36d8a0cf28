"""Pictures of one's own: what a user shows, what is found, and what it is saved as."""
