"""From a folder of images and boxes to batches: readers, caches, augmentation, loaders, anchors. No torch."""
