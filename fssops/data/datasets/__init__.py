"""What training and evaluation iterate over: the images of a source, augmented, as tensors with their targets."""
