"""Files of corrupted images, as CIFAR-10-C has them."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from raymi.data import ImageSet


def write_corrupted_files(images: ImageSet, folder: Path) -> Path:
    """Writes noise and low contrast of five severities, and the labels; returns the folder."""
    folder.mkdir()
    num, (_, _, height, width) = int(images.places.max()) + 1, images.images.shape
    pixels, labels = np.zeros((num, height, width, 3)), np.zeros(num, np.int64)
    pixels[images.places] = images.images.permute(0, 2, 3, 1).numpy()
    labels[images.places] = images.labels.numpy()
    rng = np.random.default_rng(0)
    noise = [pixels + rng.normal(0, 30 * severity, pixels.shape) for severity in range(1, 6)]
    contrast = [pixels * (1 - 0.18 * severity) for severity in range(1, 6)]
    for name, rows in (("gaussian_noise", noise), ("contrast", contrast)):
        np.save(folder / f"{name}.npy", np.concatenate(rows).clip(0, 255).astype(np.uint8))
    np.save(folder / "labels.npy", np.tile(labels, 5))
    return folder
