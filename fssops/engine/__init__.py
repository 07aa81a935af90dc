"""Training, whatever is trained: settings, samplers, checkpoints, run folders and the trainer itself."""
