"""Comparison of two versions of raymi, bit for bit: `python -m studies.same_bits REVISION`."""
