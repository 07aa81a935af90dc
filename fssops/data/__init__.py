"""Reading images and masks, data sets in many layouts, folds, episodes, weak annotations and augmentation.

Start at :func:`fssops.data.layouts.open_data`; ``python -m fssops.data --help`` lists what can be done from a shell.
"""
