"""Files in, `Episode` batches out: image sources, folds, episode lists, transforms and the DataModule."""
