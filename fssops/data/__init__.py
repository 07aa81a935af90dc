"""Reading images and masks, few-shot data sets, folds, episodes, weak annotations and augmentation.

Start at :mod:`fssops.data.fewshot`; ``python -m fssops.data --help`` lists what can be done from a shell.
"""
