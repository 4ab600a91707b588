"""Adversarial losses, one module each, and their settings; none imports torch before its use."""

from raymi.losses.base import AdversarialLoss
from raymi.losses.registry import losses
from raymi.losses.settings import LossConfig

__all__ = ["AdversarialLoss", "LossConfig", "losses"]
