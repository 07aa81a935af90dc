"""Items and augmentation of universal segmentation."""
