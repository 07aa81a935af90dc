"""One augmentation stack for images of every kind of system: scenes, what changes them, and the published chains."""
