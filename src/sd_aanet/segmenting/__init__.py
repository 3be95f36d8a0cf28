"""Masks of one's own pictures: from marks to supports, from what was found to files."""
