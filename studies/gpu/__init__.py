"""Measurements of raymi on one GPU, without Ray and MLflow."""
