"""Training: the LightningModule, its losses, callbacks and loggers, and the run."""

TRAINED = "trained.json"
"""In a run's folder once its training has come to its end."""
