"""From a source to batches: readers, checks, splits, the image cache, loaders, augmentation."""
