"""Image classifiers that take raw pixels: CIFAR-style networks with the normalisation inside."""

from raymi.models.classifier import Classifier, Normalize
from raymi.models.registry import MODELS, architecture, build_model, check_model

__all__ = ["MODELS", "Classifier", "Normalize", "architecture", "build_model", "check_model"]
