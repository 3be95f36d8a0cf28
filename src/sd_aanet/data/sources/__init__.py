"""Data sets as images with masks: one file each, and what they share."""
