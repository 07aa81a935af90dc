"""Image encoders: one file a family, :mod:`fssops.models.backbones.build` has their table."""
