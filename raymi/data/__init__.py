"""Data sets as uint8 tensors in memory, their batches and their augmentation."""

from raymi.data.image_set import ImageSet, Splits
from raymi.data.load import DATASETS, check_data, load_splits

__all__ = ["DATASETS", "ImageSet", "Splits", "check_data", "load_splits"]
