"""Robust accuracy that can be trusted: attacks on fixed blocks of samples, kept in a ledger."""
